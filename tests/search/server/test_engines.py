"""Models behind the collections: shared, freed, and refused when they are others."""

from __future__ import annotations

import shutil

import pytest
from tests.search.server import making

from crossadapt.errors import UserError
from crossadapt.search.card import View
from crossadapt.search.collection import Collections
from crossadapt.search.embedder import Embedder
from crossadapt.search.server.engines import Engines


def held(engine):
    """Bytes of all tensors of a model and its adapters, each storage once."""
    backbone = engine.embedder.backbone
    found = {}
    for module in (backbone, *backbone.adapters.values()):
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def test_memory_grows_by_the_adapters_only(store):
    home, engines = Collections(store), Engines("cpu")
    plain = engines.bind(home.open("plain"), home.uri)
    before = held(plain.engine)
    shapes = engines.bind(home.open("shapes"), home.uri)
    assert shapes.engine is plain.engine
    trained = sum(view.trained for view in home.open("shapes").card.views)
    assert held(plain.engine) - before == 4 * trained
    again = engines.bind(home.open("shapes"), home.uri)
    assert held(plain.engine) - before == 4 * trained
    engines.release(again)
    assert len(plain.engine.embedder.names) == 2
    engines.release(shapes)
    assert plain.engine.embedder.names == ()
    assert held(plain.engine) == before


def test_the_same_name_may_mean_different_adapters(tmp_path, adapters):
    home = Collections(tmp_path / "store")
    for name, folder in adapters.items():
        renamed = {"default": folder}
        making.make_collection(home, f"with-{name}", renamed, tmp_path / name, 6)
    engines = Engines("cpu")
    first, second = (engines.bind(home.open(f"with-{name}"), home.uri) for name in "ab")
    assert first.engine is second.engine
    assert first.names["default"] != second.names["default"]
    one = first.texts(["a red door"], "default")
    two = second.texts(["a red door"], ["default"])
    alone = Embedder.open("tiny:clip", adapters, device="cpu", precision="fp32")
    assert abs(one - alone.texts(["a red door"], "a")).max() < 1e-6
    assert abs(two - alone.texts(["a red door"], "b")).max() < 1e-6


def test_an_adapter_that_is_gone_or_another_is_refused(tmp_path, adapters):
    home = Collections(tmp_path / "store")
    folder = tmp_path / "adapter"
    shutil.copytree(adapters["a"], folder)
    making.make_collection(home, "c", {"mine": folder}, tmp_path / "p", 6)
    collection = home.open("c")
    shutil.rmtree(folder)
    engines = Engines("cpu")
    with pytest.raises(UserError, match="'mine' cannot be loaded") as caught:
        engines.bind(collection, home.uri)
    assert "crossadapt index" in caught.value.fix
    shutil.copytree(adapters["b"], folder)
    with pytest.raises(UserError, match="another adapter"):
        engines.bind(collection, home.uri)
    shutil.rmtree(folder)
    shutil.copytree(adapters["a"], folder)
    bound = engines.bind(collection, home.uri)
    assert len(bound.engine.embedder.names) == 1, "what did not fit was taken off again"
    with home.open("c", write=True) as writer:
        writer.update_card(views=(View("frozen", "0" * 64), *writer.card.views[1:]))
    with pytest.raises(UserError, match="another model"):
        engines.bind(home.open("c"), home.uri)

"""Whatever the schema allows, and much that it does not: never a 500, always the one shape."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from tests.search.server import making

QUIET = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def schema(address):
    """The server's own description of itself."""
    with making.client(address) as client:
        return schemathesis.openapi.from_dict(client.get("/openapi.json").json())


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
PATHS = (
    ("/search", "GET"), ("/search", "POST"), ("/items/{id}", "GET"), ("/thumbnail/{id}", "GET"),
    ("/file/{id}", "GET"), ("/collections", "GET"), ("/collections/{name}/facets", "GET"),
    ("/adapters", "GET"), ("/health", "GET"), ("/metrics", "GET"),
)  # fmt: skip


def test_every_path_is_fuzzed(schema):
    found = {(o.ok().path, o.ok().method.upper()) for o in schema.get_all_operations()}
    assert found == set(PATHS)


VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
CASES = [(path, method, VALID) for path, method in PATHS] + [
    # The other paths take nothing that could be wrong.
    (path, method, INVALID)
    for path, method in PATHS
    if "{" in path or path == "/search"
]


@pytest.mark.parametrize(("path", "method", "mode"), CASES, ids=str)
def test_the_schema_is_kept_and_nothing_breaks(schema, address, path, method, mode):
    operation = schema[path][method]

    @QUIET
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        answer = case.call(base_url=address)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400 and "json" in answer.headers.get("content-type", [""])[0]:
            assert set(answer.json()) == {"error"}

    ask()


@QUIET
@given(
    fields=st.dictionaries(
        st.sampled_from(
            ["q", "k", "filter", "view", "strength", "like", "exclude", "weight", "zz"]
        ),
        st.text(max_size=60) | st.sampled_from(["frozen", "0.5", "number > 3", "1e999", "-1"]),
    ),
    content=st.none() | st.binary(max_size=300),
)
def test_searches_by_hand(address, fields, content):
    files = {name: (None, value) for name, value in fields.items()}
    files["collection"] = (None, "shapes")
    if content is not None:
        files["image"] = ("a.png", content)
    with making.client(address) as client:
        for answer in (
            client.post("/search", files=files),
            client.get("/search", params={**fields, "collection": "shapes"}),
        ):
            assert answer.status_code in (200, 400, 422), answer.text
            assert ("hits" in answer.json()) == (answer.status_code == 200)

import torch

from crossadapt.layers.drawing_augmentation import DrawingAugmentation


def drawings(batch=16, side=32):
    """A coloured square on white."""
    pixels = torch.full((batch, 3, side, side), 255, dtype=torch.uint8)
    pixels[:, 0, 8:24, 8:24] = 40
    pixels[:, 1, 8:24, 8:24] = 160
    return pixels


def test_shape_type_and_white_background_survive():
    torch.manual_seed(0)
    out = DrawingAugmentation()(drawings())
    assert out.shape == (16, 3, 32, 32)
    assert out.dtype == torch.uint8
    corners = out[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()


def test_pictures_differ_from_the_original_and_from_each_other():
    torch.manual_seed(0)
    pixels = drawings()
    out = DrawingAugmentation()(pixels)
    assert (out != pixels).flatten(1).any(1).all()
    assert len(torch.unique(out.flatten(1), dim=0)) == len(out)


def test_a_saved_generator_state_replays_it():
    torch.manual_seed(3)
    first = DrawingAugmentation()(drawings())
    torch.manual_seed(3)
    assert torch.equal(first, DrawingAugmentation()(drawings()))


def test_everything_off_changes_no_position():
    still = DrawingAugmentation(
        scale=(1.0, 1.0), rotation=0, shift=0, shear=0,
        colour=0, outline=0, line_art=0, grey=0, flat=0,
    )  # fmt: skip
    out = still(drawings())
    # Only the strength of the ink varies: the square stays where it is, white stays white.
    inked = (out < 255).any(1)
    assert torch.equal(inked, (drawings() < 255).any(1))


def test_line_art_keeps_edges_and_empties_areas():
    torch.manual_seed(0)
    art = DrawingAugmentation(
        scale=(1.0, 1.0), rotation=0, shift=0, shear=0,
        colour=0, outline=0, line_art=1.0, grey=0, flat=0,
    )(drawings())  # fmt: skip
    assert (art[:, :, 12:20, 12:20] == 255).all()
    assert (art[:, :, 8, 8:24] < 255).all()

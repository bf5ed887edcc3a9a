"""VP equals its official code, and its random patch moves while it trains."""

import torch

from tests.golden import golden
from tests.methods.pixels import SIDES, body, close, method


def test_vp_equals_the_official_code():
    g = golden("pix_vp")
    border = method({"name": "vp", "size": 5}, body(32))
    border.load_state_dict({f"prompt.{side}": g[f"method/pad_{side}"] for side in SIDES})
    patch = method({"name": "vp", "kind": "fixed_patch", "size": 6}, body(32))
    patch.load_state_dict({"prompt.patch": g["method/patch"]})
    padded, patched = border(g["input/image"]), patch(g["input/image"])
    ((padded * g["cotangent/padding"]).sum() + (patched * g["cotangent/fixed_patch"]).sum()).backward()
    torch.testing.assert_close(padded, g["output/padding"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patched, g["output/fixed_patch"], atol=1e-5, rtol=1e-5)
    for side in SIDES:
        close(getattr(border.prompt, side), g[f"grad/pad_{side}"])
    close(patch.prompt.patch, g["grad/patch"])


def test_a_random_patch_moves_while_training_and_is_in_the_centre_otherwise():
    vp = method({"name": "vp", "kind": "random_patch", "size": 9}, body(32))
    blank = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(vp.eval()(blank)[:, :, 11:20, 11:20], vp.prompt.patch)
        places = set()
        for _ in range(20):
            moved = vp.train()(blank)
            at = moved[0, 0].nonzero().min(dim=0).values.tolist()
            torch.testing.assert_close(moved[:, :, at[0] : at[0] + 9, at[1] : at[1] + 9], vp.prompt.patch)
            assert moved.count_nonzero() == vp.prompt.patch.count_nonzero()
            places.add(tuple(at))
    assert len(places) > 10

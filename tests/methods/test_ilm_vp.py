"""ILM-VP's program, around the image and on its border, equals the official code."""

import torch

from tests.golden import golden
from tests.methods.pixels import IMAGENET, body, close, method, normalised


def test_ilm_vp_equals_the_official_code():
    g = golden("pix_ilm_vp")
    outside = method({"name": "ilm_vp", "inner": 20}, body(33))
    border = method({"name": "ilm_vp", "kind": "border", "inner": 22}, body(32))
    with torch.no_grad():
        outside.program.copy_(g["method/program"])
        border.program.copy_(g["method/additive_program"])
    expansive = outside.surround(normalised(g["input/image"], IMAGENET))
    additive = border(g["input/image32"])
    ((expansive * g["cotangent/expansive"]).sum() + (additive * g["cotangent/additive"]).sum()).backward()
    torch.testing.assert_close(expansive, g["output/expansive"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(additive, g["output/additive"], atol=1e-5, rtol=1e-5)
    close(outside.program, g["grad/program"])
    close(border.program, g["grad/additive_program"])

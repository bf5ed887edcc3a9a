"""What the README says is what the code does. `python -m tests.test_readme` writes its generated table anew."""

import re
from pathlib import Path

from tests.zoo import CASES, MODELS, REFUSED

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BACKBONES = {
    "timm ViT, DeiT, DINOv2": ["timm_vit", "timm_registers"],
    "timm CLIP, SigLIP": ["timm_vit", "timm_siglip"],
    "timm DINOv3": ["timm_dinov3"],
    "timm Swin": ["timm_swin"],
    "open_clip": ["open_clip"],
    "transformers ViT, DINOv2": ["hf_vit", "hf_dinov2", "hf_registers"],
    "transformers CLIP, SigLIP": ["hf_clip", "hf_siglip"],
}


def matrix() -> str:
    """Methods by backbones, from the pairs that the contract test runs and those it sees refused."""
    lines = ["| | " + " | ".join(BACKBONES) + " |", "|---|" + ":-:|" * len(BACKBONES)]
    for row in sorted({case.row for case in CASES.values()}):
        cases = [name for name, case in CASES.items() if case.row == row]
        cells = []
        for bodies in BACKBONES.values():
            reasons = [REFUSED[b, c] for b in bodies for c in cases if (b, c) in REFUSED]
            cells.append(f"refused: {reasons[0]}" if reasons else "yes")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_matrix(text: str) -> str:
    block = f"<!-- matrix -->\n{matrix()}\n<!-- /matrix -->"
    return re.sub(r"<!-- matrix -->.*<!-- /matrix -->", lambda _: block, text, flags=re.S)


def test_the_matrix_is_the_one_that_is_tested():
    assert {b for bodies in BACKBONES.values() for b in bodies} == set(MODELS)
    assert README.read_text() == with_matrix(README.read_text())


def test_ci_runs_the_readmes_test_command():
    (command,) = re.findall(r"^python3.11 -m venv .*pytest$", (ROOT / ".ci" / "run").read_text(), flags=re.M)
    assert f"\n{command}\n" in README.read_text()


def test_links_of_the_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_config_named_in_the_pages_exists():
    for page in [README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text()
        for name in re.findall(r"configs/\w+/\w+\.yaml", text):
            made = f"cat > {name} <<" in text  # by a block of the page
            assert made or (ROOT / name).exists() or "flowers" in name or "mymethod" in name, f"{page.name}: {name}"


if __name__ == "__main__":
    README.write_text(with_matrix(README.read_text()))

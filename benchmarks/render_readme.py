"""Write the committed results into the tables of README.md.

python -m benchmarks.render_readme
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def tokenizer_table() -> str:
    """One row per shipped tokenizer, by falling rate."""
    rows = [
        "| name | bits per pixel | PSNR dB | SSIM | entropy, bits per pixel | codewords used |",
        "|---|---|---|---|---|---|",
    ]
    results = json.loads((RESULTS / "tokenizers.json").read_text())
    for name, result in sorted(results.items(), key=lambda item: -item[1]["metrics"]["bits_per_pixel"]):
        m = result["metrics"]
        rows.append(
            f"| `{name}` | {m['bits_per_pixel']:g} | {m['psnr_dataset']:.2f} | {m['ssim']:.4f} | "
            f"{m['entropy_bits_per_pixel']:.2f} | {m['codebook_utilization']:.1%} |"
        )
    return "\n".join(rows)


def speed_table() -> str:
    """One row per configuration: how many times faster than the loop."""
    results = json.loads((RESULTS / "quantizer_speed.json").read_text())["results"]
    rows = ["| latents of | search | forward + backward |", "|---|---|---|"]
    for name, result in results.items():
        if "search" in result:
            ratios = (result[action]["ratio"] for action in ("search", "forward_backward"))
            rows.append(f"| {name} | " + " | ".join(f"{ratio:.1f} x" for ratio in ratios) + " |")
        else:
            memory = result["peak_extra_megabytes_beside_outputs"]
            rows.append(
                f"| {name}, peak extra memory | {memory['pqdiff']:.0f} MB, the loop {memory['loop']:.0f} MB | |"
            )
    return "\n".join(rows)


def tiny_table() -> str:
    """One row per tiny pipeline: fraction right per attribute."""
    results = json.loads((RESULTS / "tiny_suite.json").read_text())["pipelines"]
    attributes = list(next(iter(results.values()))["right"])
    rows = [
        f"| pipeline | picture | latents | {' | '.join(attributes)} | seconds |",
        "|---|---|---|" + "---|" * (len(attributes) + 1),
    ]
    for name, result in results.items():
        cells = " | ".join(f"{result['right'][key]:.1%}" for key in attributes)
        channels, side, _ = result["latents"]
        rows.append(
            f"| `{name}` | {result['resolution']} px | {channels} x {side} x {side} | {cells} | "
            f"{result['seconds_per_picture']:.3f} |"
        )
    return "\n".join(rows)


def table3_table() -> str:
    """One row per pipeline: ratios of speed to SD2.1, counted, timed and the paper's."""
    document = json.loads((RESULTS / "table3.json").read_text())
    counted, timed, paper = document["flops"], document["cpu"], document["paper"]
    rows = [
        "| | TFLOP a picture | speed by FLOPs | speed by CPU time | paper, A100 | peak GB, CPU bf16 | paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in timed["rows"].items():
        speeds = (part["ratios"].get(name, 1.0) for part in (counted, timed, paper))
        rows.append(
            f"| {name} | {counted['rows'][name]['sample'] / 1e12:.1f} | "
            + " | ".join(f"{speed:.2f} x" for speed in speeds)
            + f" | {row['peak_gigabytes']:.1f} | {paper['rows'][name]['gigabytes']:.1f} |"
        )
    return "\n".join(rows)


def render(text: str) -> str:
    """README with all tables as the results have them."""
    for mark, table in (
        ("results", tokenizer_table()),
        ("speed", speed_table()),
        ("tiny", tiny_table()),
        ("table3", table3_table()),
    ):
        text, count = re.subn(
            rf"(<!-- {mark}: [^\n]*-->\n).*?(<!-- /{mark} -->)",
            lambda m, t=table: f"{m[1]}{t}\n{m[2]}",
            text,
            flags=re.S,
        )
        if count != 1:
            raise ValueError(f"README.md must have the mark {mark!r} once, has it {count} times")
    return text


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(render(path.read_text()))

"""Write the committed results into the tables of README.md and docs/perception.md.

python -m benchmarks.render_readme
"""

import json
import re
from pathlib import Path

from benchmarks.perception_tables import perception_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def tokenizer_table() -> str:
    """One row per shipped tokenizer, by falling rate."""
    rows = [
        "| name | bits per pixel | PSNR dB | SSIM | SSIMULACRA2 | entropy, bits per pixel | codewords used | 512 px, "
        "both ways |",
        "|---|---|---|---|---|---|---|---|",
    ]
    results = json.loads((RESULTS / "tokenizers.json").read_text())
    times = json.loads((RESULTS / "tokenizer_speed.json").read_text())["milliseconds"]
    seen = json.loads((RESULTS / "evaluation.json").read_text())
    for name, result in sorted(results.items(), key=lambda item: -item[1]["metrics"]["bits_per_pixel"]):
        m = result["metrics"]
        rows.append(
            f"| `{name}` | {m['bits_per_pixel']:g} | {m['psnr_dataset']:.2f} | {m['ssim']:.4f} | "
            f"{seen[name]['metrics']['ssimulacra2']:.1f} | {m['entropy_bits_per_pixel']:.2f} | "
            f"{m['codebook_utilization']:.1%} | {times[name]['both']['median'] / 1000:.2f} s |"
        )
    return "\n".join(rows)


# Column of the speed table: action, the slower, the faster.
_SPEED_COLUMNS = {
    "forward: loop / plain": ("forward", "loop", "plain"),
    "loop / compiled": ("forward", "loop", "compiled"),
    "loop / native": ("forward", "loop", "native"),
    "search alone: faiss / native": ("search", "faiss", "native"),
    "forward + backward: loop / plain": ("forward_backward", "loop", "plain"),
    "loop / native ": ("forward_backward", "loop", "native"),
    "VectorQuantize / native": ("forward_backward", "VectorQuantize", "native"),
}


def speed_table() -> str:
    """One row per configuration: how many times faster on one thread; then the memory."""
    document = json.loads((RESULTS / "quantizer_speed.json").read_text())
    rows = [f"| latents of | {' | '.join(map(str.strip, _SPEED_COLUMNS))} |", "|---" * (len(_SPEED_COLUMNS) + 1) + "|"]
    for name, cell in document["cells"]["1"].items():
        times = {action: cell[action]["milliseconds"] for action in ("search", "forward", "forward_backward")}
        pairs = [(times[action].get(slow), times[action].get(fast)) for action, slow, fast in _SPEED_COLUMNS.values()]
        cells = [f"{slow['median'] / fast['median']:.1f} x" if slow and fast else "-" for slow, fast in pairs]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    memory = document["memory"]
    peaks = {
        name: max(value for value in peak.values() if value is not None)
        for name, peak in memory["peak_extra_megabytes"].items()
        if peak
    }
    shown = ", ".join(
        f"{name} {peaks[name]:.0f} MB" for name in ("loop", "plain", "compiled", "native") if name in peaks
    )
    return "\n".join([*rows, "", f"Peak extra memory of the search at {memory['config']}: {shown}."])


def tiny_table() -> str:
    """One row per tiny pipeline: fraction right per attribute."""
    results = json.loads((RESULTS / "tiny_suite.json").read_text())["pipelines"]
    attributes = list(next(iter(results.values()))["right"])
    rows = [
        f"| pipeline | image | latents | {' | '.join(attributes)} | grain | seconds |",
        "|---|---|---|" + "---|" * (len(attributes) + 2),
    ]
    for name, result in results.items():
        cells = " | ".join(f"{result['right'][key]:.1%}" for key in attributes)
        channels, side, _ = result["latents"]
        rows.append(
            f"| `{name}` | {result['resolution']} px | {channels} x {side} x {side} | {cells} | {result['grain']:.1f} | "
            f"{result['seconds_per_picture']:.3f} |"
        )
    return "\n".join(rows)


def ways_table() -> str:
    """Prompts right and grain of the same latents, decoded in different ways; the saved way of a pipeline is marked."""
    results = json.loads((RESULTS / "tiny_suite.json").read_text())["pipelines"]
    results = {name: result for name, result in results.items() if "ways" in result}
    ways = list(next(iter(results.values()))["ways"])
    titles = {"True": "nearest codewords", "False": "as they are"}
    rows = [
        f"| prompts right / grain | {' | '.join(f'`{name}`' for name in results)} |",
        "|---" * (len(results) + 1) + "|",
    ]
    for way in ways:
        cells = []
        for result in results.values():
            text = f"{result['ways'][way]['all']:.1%} / {result['ways'][way]['grain']:.1f}"
            cells.append(f"**{text}**" if way == str(result["quantize_latents"]) else text)
        rows.append(f"| {titles.get(way, f'soft, noise {way}')} | {' | '.join(cells)} |")
    kept = (
        f"{result['autoencoder_alone']['all']:.1%} / {result['autoencoder_alone']['grain']:.1f}"
        for result in results.values()
    )
    rows.append(f"| autoencoder alone, on renders | {' | '.join(kept)} |")
    return "\n".join(rows)


def noise_table() -> str:
    """PSNR of the plain tokenizers under noise on the latents, decoded in three ways."""
    results = json.loads((RESULTS / "latent_stats.json").read_text())["autoencoders"]
    names = [name for name in results if not name.endswith(("-adaptive", "-perceptual"))]
    rows = [
        f"| noise | {' | '.join(f'`{name}`' for name in names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for level in ("0", "0.03", "0.1", "0.3", "0.5"):
        cells = (
            " / ".join(f"{results[name]['psnr_under_noise'][level][way]:.1f}" for way in ("snapped", "free", "soft"))
            for name in names
        )
        rows.append(f"| {level} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", "PSNR in dB: nearest codewords / as they are / soft."])


def quantizers_table() -> str:
    """One row per method, by quality: mean and standard deviation over seeds."""
    document = json.loads((RESULTS / "quantizers.json").read_text())
    rows = [
        "| method | bits per pixel | PSNR dB | SSIM | SSIMULACRA2 | codewords used | H_n | P_n | images/s | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    methods = document["methods"].items()
    for name, result in sorted(methods, key=lambda item: -item[1]["metrics"]["psnr_dataset"]["mean"]):
        m = result["metrics"]
        used = m.get("codebook_utilization")
        rows.append(
            f"| {name} | {m['bits_per_pixel']['mean']:.3f} | {m['psnr_dataset']['mean']:.2f} "
            f"± {m['psnr_dataset']['std']:.2f} | {m['ssim']['mean']:.4f} | {m['ssimulacra2']['mean']:.1f} | "
            f"{used['mean']:.1%} | {m['codebook_h_n']['mean']:.3f} | {m['codebook_p_n']['mean']:.3f} | "
            f"{result['search_images_per_second']:,.0f} | {result['search_megabytes']:.2f} + "
            f"{result['stored_megabytes']:.2f} |"
        )
    return "\n".join(rows)


def vae_table() -> str:
    """PSNR of each way to make an autoencoder discrete, by rate."""
    document = json.loads((RESULTS / "vae_tokenizers.json").read_text())
    rates = sorted({row["bits_per_pixel"] for row in document["rows"]})
    rows = [f"| bits per pixel | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for way in dict.fromkeys(row["way"] for row in document["rows"]):
        found = {row["bits_per_pixel"]: row["psnr_dataset"] for row in document["rows"] if row["way"] == way}
        rows.append(f"| {way} | {' | '.join(f'{found[r]:.2f} dB' if r in found else '-' for r in rates)} |")
    bits = document["posterior_bits_per_channel"]
    return "\n".join(
        [
            *rows,
            "",
            f"The autoencoder itself: {document['psnr_dataset_of_the_autoencoder']:.2f} dB; its posteriors carry "
            f"{min(bits):.1f} to {max(bits):.1f} bits per channel, {sum(bits) / 64:.2f} bits per pixel.",
        ]
    )


def trends_table() -> str:
    """PSNR (and fraction of the codewords used) of product quantization by d, by K, and by S at equal bits."""
    rows = json.loads((RESULTS / "pq_trends.json").read_text())["rows"]
    found = {(row["fit"], row["d"], row["S"], row["K"]): row for row in rows}
    both = ("closed form", "trained")

    def cells(fits: tuple[str, ...], *sizes: int) -> str:
        chosen = [found.get((fit, *sizes)) for fit in fits]
        return " | ".join(f"{row['psnr_dataset']:.2f} ({row['usage']:.0%})" if row else "-" for row in chosen)

    def rate(*sizes: int) -> str:
        return f"{found[('closed form', *sizes)]['bits_per_pixel']:.4g}"

    by_d = [
        f"| d, K = 512 | VQ at {rate(4, 1, 512)} bits per pixel, closed form | trained | trained, unused codewords move "
        f"| S = 4 at {rate(4, 4, 512)} bits, closed form | trained | S = d/2: bits | closed form | trained |",
        "|---" * 9 + "|",
    ]
    for d in sorted({row["d"] for row in rows}):
        one, four = cells((*both, "trained, restarts"), d, 1, 512), cells(both, d, 4, 512)
        by_d.append(f"| {d} | {one} | {four} | {rate(d, d // 2, 512)} | {cells(both, d, d // 2, 512)} |")
    by_k = [
        "| K, d = 32 | VQ: bits per pixel | closed form | trained | S = d/2: bits per pixel | closed form | trained |",
        "|---" * 7 + "|",
    ]
    for K in (128, 512, 1024, 8192, 16384):
        one, half = ((32, S, K) for S in (1, 16))
        by_k.append(f"| {K} | {rate(*one)} | {cells(both, *one)} | {rate(*half)} | {cells(both, *half)} |")
    equal = ["| closed form, d = 32, at equal bits per pixel | PSNR dB by S |", "|---|---|"]
    for bits in (12, 32, 64):
        same = [row for row in rows if row["d"] == 32 and row["fit"] == "closed form"]
        same = [row for row in same if row["bits_per_pixel"] == bits / 64]
        shown = (f"S = {row['S']}, K = {row['K']}: {row['psnr_dataset']:.2f}" for row in same)
        equal.append(f"| {bits / 64:.4g} | {'; '.join(shown)} |")
    return "\n".join([*by_d, "", *by_k, "", *equal])


def lc_table() -> str:
    """One row per point of VQGAN-LC's ablations."""
    document = json.loads((RESULTS / "lc_codebook.json").read_text())
    rows = [
        "| features | K | d | steps | bits per pixel | PSNR dB | codewords used | H_n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in document["points"]:
        rows.append(
            f"| {p['features']} | {p['codebook_size']:,} | {p['latent_channels']} | {p['steps']:,} | "
            f"{p['bits_per_pixel']:.3f} | {p['psnr_dataset']:.2f} | {p['codebook_utilization']:.1%} | "
            f"{p['codebook_h_n']:.3f} |"
        )
    step = document["memory"]["step_gib"]
    return "\n".join(
        [
            *rows,
            "",
            f"A step of the published size (256 px, batch 4, 100,000 x 768, Adam) takes {step:.1f} GiB of tensors.",
        ]
    )


def search_table() -> str:
    """Search in one large table: times faster than others, and memory."""
    tables = json.loads((RESULTS / "table_search.json").read_text())["tables"]
    rows = ["| table | ours | times faster than | memory, MB: ours / others |", "|---|---|---|---|"]
    for name, result in tables.items():
        faster = ", ".join(f"{other} {ratio:.1f}" for other, ratio in result["times_faster"].items())
        others = ", ".join(f"{value:.0f}" for other, value in result["megabytes"].items() if other != "ours")
        milliseconds = result["milliseconds"]["ours"]
        rows.append(f"| {name} | {milliseconds:.0f} ms | {faster} | {result['megabytes']['ours']:.2f} / {others} |")
    return "\n".join(rows)


def table3_table() -> str:
    """One row per pipeline: ratios of speed to SD2.1, counted, timed and the paper's."""
    document = json.loads((RESULTS / "table3.json").read_text())
    counted, timed, paper = document["flops"], document["cpu"], document["paper"]
    rows = [
        "| | TFLOP per image | speed by FLOPs | speed by CPU time | paper, A100 | peak GB, CPU bf16 | paper |",
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


def render(text: str, tables: dict[str, str]) -> str:
    """A text with all tables, by their marks, as the results have them."""
    for mark, table in tables.items():
        text, count = re.subn(
            rf"(<!-- {mark}: [^\n]*-->\n).*?(<!-- /{mark} -->)",
            lambda m, t=table: f"{m[1]}{t}\n{m[2]}",
            text,
            flags=re.S,
        )
        if count != 1:
            raise ValueError(f"the mark {mark!r} must be there once, it is {count} times")
    return text


def documents() -> dict[str, dict[str, str]]:
    """The tables of each file by their marks."""
    readme = {
        "results": tokenizer_table(),
        "speed": speed_table(),
        "noise": noise_table(),
        "tiny": tiny_table(),
        "ways": ways_table(),
        "table3": table3_table(),
        "quantizers": quantizers_table(),
        "trends": trends_table(),
        "vae": vae_table(),
        "lc": lc_table(),
        "search": search_table(),
    }
    return {"README.md": readme, "docs/perception.md": perception_tables(RESULTS)}


if __name__ == "__main__":
    for file, tables in documents().items():
        (ROOT / file).write_text(render((ROOT / file).read_text(), tables))

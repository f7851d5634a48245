"""The report of scripts/bench: its figures as JSON, tables in Markdown, and a plot."""

import json
import math
from statistics import median

# The jobs that the plot shows, with their titles, and the colours of the tools.
PLOTTED = {
    "latency": "One line, end to end",
    "write": "1,000,000 lines in",
    "read": "1,000,000 lines out",
    "through": "Both at once",
    "once": "One line, whole process",
}
COLOURS = {"ours": "#1a7f37", "before": "#74c69d", "sealed": "#bf3989", "kcat": "#0969da", "Apache": "#bc4c00", "Python": "#8250df"}
# In pixels: the labels' width, the axis, a line, and the space above them.
LEFT, WIDTH, LINE, TOP = 310, 520, 22, 64


def medians(rows):
    """The medians by broker and kind of figure, and there by tool or size."""
    found = {}
    for row in rows:
        found.setdefault((row["broker"], row["what"]), {})[row["tool"]] = median(row["figures"])
    return found


def digits(figure):
    """A figure with three significant digits."""
    if figure == 0:
        return "0"
    return f"{figure:,.{max(2 - math.floor(math.log10(abs(figure))), 0)}f}"


def table(job, found):
    """A job's figures in Markdown. Ratios are to the first tool, which is ours, or the smallest size."""
    groups = medians(found["rows"])
    lines = [
        f"## {job}",
        "",
        f"{found['when']}: {found['rounds']} rounds, scale {found['scale']:g}, load before it {found['load']}.",
        "",
        "| broker | | | median | least – most | ratio |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in found["rows"]:
        group, figures, unit = groups[row["broker"], row["what"]], row["figures"], row["unit"]
        first = next(iter(group.values()))
        ratio = f"{group[row['tool']] / first:.2f}" if first else ""
        lines.append(
            f"| {row['broker']} | {row['what']} | {row['tool']} | {digits(group[row['tool']])} {unit} "
            f"| {digits(min(figures))} – {digits(max(figures))} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def write_report(folder, jobs, results):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    head = "# Measurements\n\nWritten by `scripts/bench`, whose help explains the jobs. Compare ratios, not times.\n\n"
    head += "".join(f"- {line}\n" for line in dict.fromkeys(sum((one["machine"] for one in results.values()), [])))
    tables = [table(job, results[job]) for job in jobs if job in results]
    (folder / "bench.md").write_text("\n".join([head, *tables]))
    (folder / "bench.svg").write_text(plot(results))


def plot(results):
    """How many times as long as ours each tool takes: a dot for each, on a logarithmic axis."""
    lines = []
    for job in PLOTTED:
        for (broker, what), tools in medians(results.get(job, {"rows": []})["rows"]).items():
            if what not in ("memory", "processor time"):
                title = PLOTTED[job] + (f", {what}" if what != "time" else "")
                ratios = {tool: figure / tools["ours"] for tool, figure in tools.items()}
                lines.append((f"{title}: {broker}", ratios))
    every = [ratio for _, ratios in lines for ratio in ratios.values()] or [1]
    low = math.floor(math.log10(min(every)) * 2) / 2
    high = math.ceil(math.log10(max(every)) * 2) / 2 or 1
    bottom = TOP + LINE * len(lines)

    def x(ratio):
        return LEFT + WIDTH * (math.log10(ratio) - low) / (high - low)

    def text(at, y, words, more=""):
        return f'<text x="{at:.1f}" y="{y}" {more}>{words}</text>'

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 30} {bottom + 40}" '
        'font-family="sans-serif" font-size="12" fill="#1f2328">',
        '<rect width="100%" height="100%" fill="white"/>',
        text(10, 22, "How many times as long as ours (to the right: slower)", 'font-size="15"'),
    ]
    shown = [tool for tool in COLOURS if any(tool in ratios for _, ratios in lines)]
    for n, tool in enumerate(shown):
        svg.append(f'<circle cx="{130 * n + 15}" cy="40" r="5" fill="{COLOURS[tool]}"/>')
        svg.append(text(130 * n + 25, 44, tool))
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = x(10**power)
        svg.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 10}" y2="{bottom}" stroke="#d0d7de"/>')
        svg.append(text(at, bottom + 18, f"{10**power:g}×", 'text-anchor="middle"'))
    for n, (title, ratios) in enumerate(lines):
        y = TOP + LINE * n + 6
        svg.append(text(LEFT - 10, y + 4, title, 'text-anchor="end" font-size="11"'))
        for tool, ratio in ratios.items():
            svg.append(f'<circle cx="{x(ratio):.1f}" cy="{y}" r="5" fill="{COLOURS[tool]}"/>')
    return "\n".join([*svg, "</svg>"]) + "\n"

"""What `top` shows: a line per node, then the chosen one with its pipelines, as far as there is room.

Every text of a document is made printable before it is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from edge_runtime.delivery.ledger import NO_PIPELINE, Account
from edge_runtime.device.wear import BYTES_PER_MB, Wear
from edge_runtime.metrics import ConnectionMetrics, Metrics, StoreMetrics
from edge_runtime.model.child import printable
from edge_runtime.top.nodes import Node

Show = Literal["all", "one", "one alone"]
SHOWS: tuple[Show, ...] = ("all", "one", "one alone")
WHOLE = "e2e"
STYLES = {"online": "green", "degraded": "yellow", "stopped": "bold", "offline": "bold red", "silent": "bold red"}
FIGURES = ("messages/s", "results/s", "queued", "dropped", "e2e p99", "missed")
STAGE_FIGURES = ("count", "p50 ms", "p95 ms", "p99 ms", "max ms", "all p50", "all p99")
FIGURES_COLUMNS = 62
LEAST_NAME = 8
MOST_CHARACTERS = 300
MOST_PATH = 120
MOST_PROBLEMS = 10
MOST_WORDS = 4
MOST_FIGURE = 11
MOST_WITH_DECIMALS, MOST_WRITTEN_OUT = 1e6, 1e9
NO_METRICS = "with node.metrics_interval_s = 0 none come"
PLAIN_COLUMNS = 200
NS_PER_S = 1e9


class Moment(NamedTuple):
    """When a picture is drawn."""

    monotonic_ns: int
    unix_s: float


class Screen:
    """One picture, of the size the terminal has when it is drawn. node, pipeline: which one, counted on and on."""

    def __init__(self, nodes: Sequence[Node], *, title: Text, at: Moment, node: int = 0, pipeline: int = 0) -> None:
        self._nodes, self._title, self._at = nodes, title, at
        self._chosen = node % len(nodes) if nodes else 0
        self._first = pipeline

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for show in SHOWS:
            lines = [line for block in self._blocks(console, show) for line in console.render_lines(block, options)]
            if len(lines) <= console.height:
                break
        else:
            left = len(lines) - console.height + 1
            more = _line(f"{left} more lines", "dim")
            lines = lines[: console.height - 1] + console.render_lines(more, options)
        for number, line in enumerate(lines):
            if number:
                yield Segment.line()
            yield from line

    def _blocks(self, console: Console, show: Show) -> Iterator[RenderableType]:
        yield self._title
        if len(self._nodes) > 1:
            room = max(console.height // 3, 1)
            first = min(max(self._chosen - room // 2, 0), max(len(self._nodes) - room, 0))
            shown, chosen = self._nodes[first : first + room], self._chosen - first
            yield overview(shown, self._at, chosen=chosen, columns=console.width)
        if self._nodes:
            node = self._nodes[self._chosen]
            yield from details(node, self._at, first=self._first, show=show, columns=console.width)


def plain(nodes: Sequence[Node], at: Moment) -> str:
    """All of it as text without colours; lines have no bound."""
    console = Console(width=PLAIN_COLUMNS, color_system=None, force_terminal=False)
    with console.capture() as captured:
        if len(nodes) > 1:
            console.print(overview(nodes, at))
        for node in nodes:
            for block in details(node, at):
                console.print(block, soft_wrap=isinstance(block, Text))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def title(broker: str, *, away: str, at: Moment, hint: str = "") -> Text:
    """The first line. away: why the broker is not there, "" while it is."""
    clock = time.strftime("%H:%M:%S", time.localtime(at.unix_s))
    found = _line(f"{printable(broker)}  {clock}  ")
    return found.append(f"broker away: {printable(away)}", "bold red") if away else found.append(hint, "dim")


def overview(nodes: Sequence[Node], at: Moment, *, chosen: int = -1, columns: int | None = None) -> Table:
    """A line per node, the sums and the worst of its pipelines. columns: of the terminal."""
    table = _table("node", "state", *FIGURES, most=_left(columns))
    for number, node in enumerate(nodes):
        metrics, past = node.metrics, node.gone(at.monotonic_ns)
        figures = _figures(metrics, list(metrics.pipelines), past=past) if metrics else ["-"] * len(FIGURES)
        table.add_row(node.name, _state(node, at), *figures, style="reverse" if number == chosen else "")
    return table


def details(
    node: Node, at: Moment, *, first: int = 0, show: Show = "all", columns: int | None = None
) -> Iterator[RenderableType]:
    """The node, a line per pipeline if it has several, then those to show, from the `first` on."""
    yield Text()
    yield _head(node, at)
    if node.metrics is None:
        return
    metrics, past = node.metrics, node.gone(at.monotonic_ns)
    yield from _problems(metrics)
    names = list(metrics.pipelines)
    if len(names) > 1 and show != "one alone":
        table = _table("pipeline", *FIGURES, most=_left(columns))
        for name in names:
            table.add_row(_short(name), *_figures(metrics, [name], past=past))
        yield table
    turned = first % len(names) if names else 0
    chosen = names[turned:] + names[:turned]
    for name in chosen if show == "all" else chosen[:1]:
        place = "" if show == "all" or len(names) == 1 else f" ({turned + 1} of {len(names):,})"
        yield from _pipeline(metrics, name, place=place, past=past)
    astray = sum(account.received for account in metrics.ledger.pipelines if account.pipeline == NO_PIPELINE)
    if astray:
        yield _line(f"{_number(astray)} messages on topics that no pipeline takes", "yellow")


def _head(node: Node, at: Moment) -> Text:
    found = Text(f"{node.name}  ").append_text(_state(node, at))
    metrics = node.metrics
    if metrics is not None:
        earlier = ", of an earlier run" if node.status is not None and node.status.boot_id != metrics.boot_id else ""
        up = "was up" if node.gone(at.monotonic_ns) else "up"
        found.append(f"  {up} {_duration(metrics.uptime_s)}, {_told(node, at)}{earlier}, every {metrics.every_s:g} s")
        about = [f"{_number(metrics.rss_mb)} MB", f"{_number(metrics.cpu_cores, 2)} cores"]
        about += [] if metrics.temperature_c is None else [f"{_number(metrics.temperature_c, 1)} C"]
        about += _words([_short(why) for why in metrics.throttled or ()])
        about += _words([f"mqtt {_connection(connection)}" for connection in metrics.mqtt])
        refused = metrics.publish_refusals
        about += [_counted(refused, "refused")] if refused else []
        found.append(f"\n  {', '.join(about)}")
        disk = [*_store(metrics.store), *_wear(metrics.wear)]
        found.append(f"\n  {', '.join(disk)}" if disk else "")
    elif node.runs and not node.unreadable:
        found.append(f"\n  no metrics yet; {NO_METRICS}", "yellow")
    if node.unreadable:
        why = "".join(f"; {kind}: {_short(reason, MOST_CHARACTERS)}" for kind, reason in node.why.items())
        found.append(f"\n  {_counted(node.unreadable, 'could not be read')}{why}", "yellow")
    return found


def _store(found: StoreMetrics | None) -> Iterator[str]:
    """What lies there; why it is not written is among the problems."""
    if found is None:
        return
    yield f"store keeps {_number(found.kept)} ({_number(found.kept_mb, 1)} MB)"
    if found.replayed:
        yield f"{_number(found.replayed)} replayed"
    if found.quarantined:
        yield f"unsound one at {_short(found.quarantined, MOST_PATH)}"


def _wear(found: Wear | None) -> Iterator[str]:
    """What is written to the storage; no rate, and no budget for it, in the first ten minutes."""
    if found is None:
        return
    yield f"{_mb(found.last_hour_bytes)} MB/h written"
    if found.mb_per_day is not None:
        budget = f" of {_number(found.budget_mb_per_day)}" if found.budget_mb_per_day else ""
        yield f"{_number(found.mb_per_day)}{budget} MB/day"


def _told(node: Node, at: Moment) -> str:
    """When the metrics were; those of a time that is over do not look live."""
    past = node.gone(at.monotonic_ns)
    if node.kept and node.metrics is not None:
        return f"{'last said at' if past else 'metrics of'} {_clock(node.metrics.at)}"
    return f"last said {_age(node, at)} ago" if past else f"metrics {_age(node, at)} old"


def _words(words: Sequence[str]) -> list[str]:
    more = len(words) - MOST_WORDS
    return [*words[:MOST_WORDS], *([f"{more:,} more"] if more > 0 else [])]


def _problems(metrics: Metrics) -> Iterator[Text]:
    for problem in metrics.problems[:MOST_PROBLEMS]:
        yield Text(f"! {_short(problem, MOST_CHARACTERS)}", "yellow")
    more = len(metrics.problems) - MOST_PROBLEMS
    if more > 0:
        yield Text(f"! {more:,} more", "yellow")


def _pipeline(metrics: Metrics, name: str, *, place: str, past: bool) -> Iterator[RenderableType]:
    """place: among the others, when they are not shown. past: the figures are of a time that is over."""
    found = metrics.pipelines[name]
    account = next((a for a in metrics.ledger.pipelines if a.pipeline == name), Account(name, ""))
    then = "then " if past else ""
    rates = f"{then}{_number(found.messages_per_s, 1)} messages/s, {_number(found.results_per_s, 1)} results/s"
    missed = f"missed {_number(found.deadline_misses)} times"
    deadline = f", deadline {found.deadline_ms:g} ms {missed}" if found.deadline_ms else ""
    oldest = f" (oldest {_number(found.oldest_ms, 1)} ms)" if found.queue_depth else ""
    flight = f"turns in flight {_number(found.turns_in_flight)}"
    style = "dim" if past else ""
    yield Text()
    head = f"  {_short(found.model)}, {_short(found.execution)}, {_short(found.delivery)}, {rates}"
    yield _line(_short(name), "bold").append(place, "not bold").append(head, f"not bold {style}")
    yield _line(f"  {then}queue {_number(found.queue_depth)}{oldest}, {flight}{deadline}", style)
    yield _line(f"  {_messages(account)}", style)
    yield _line(f"  {_results(account)}", style)
    if name in metrics.latency:
        yield Styled(_stages(metrics, name, past=past), style)
    else:
        yield _line("  not timed", style)


def _stages(metrics: Metrics, name: str, *, past: bool) -> Table:
    """Percentiles over the last interval, and since the start; of the whole way first."""
    seconds = _number(metrics.interval_s, 1)
    table = _table(f"  then, over {seconds} s" if past else f"  last {seconds} s", *STAGE_FIGURES)
    recent = metrics.recent.get(name, {})
    for stage, whole in sorted(metrics.latency[name].items(), key=lambda item: item[0] != WHOLE):
        s = recent.get(stage)
        now = (_number(s.count), *map(_ms, (s.p50_ms, s.p95_ms, s.p99_ms, s.max_ms))) if s else ["-"] * 5
        table.add_row(f"  {_short(stage)}", *now, _ms(whole.p50_ms), _ms(whole.p99_ms))
    return table


def _messages(a: Account) -> str:
    terms = [("accepted", a.accepted, ""), ("duplicates", a.duplicates, ""), _drops(a.dropped)]
    terms += [("dead-lettered", a.dead_lettered, ""), ("queued", a.queued, "")]
    beside = f"; lost before us {_number(a.lost_before_us)}" if a.lost_before_us else ""
    return f"received {_number(a.received)} = {_sum(terms)}{beside}"


def _results(a: Account) -> str:
    terms = [("confirmed", a.confirmed, ""), ("waiting", a.waiting, ""), ("unchanged", a.unchanged, "")]
    windows = sum(a.windows_dropped.values())
    beside = f"; windows dropped {_number(windows)}{_reasons(a.windows_dropped)}" if windows else ""
    return f"results {_number(a.results)} = {_sum([*terms, _drops(a.results_dropped)])}{beside}"


def _sum(terms: Sequence[tuple[str, int, str]]) -> str:
    """The first term, and those of the others that are not 0."""
    return " + ".join(f"{word} {_number(n)}{why}" for i, (word, n, why) in enumerate(terms) if n or not i)


def _drops(by_reason: Mapping[str, int]) -> tuple[str, int, str]:
    return "dropped", sum(by_reason.values()), _reasons(by_reason)


def _reasons(by_reason: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{_short(reason)} {_number(n)}' for reason, n in sorted(by_reason.items()))})"


def _figures(metrics: Metrics, names: Sequence[str], *, past: bool) -> list[str]:
    """The cells under FIGURES of some pipelines together. past: only what was counted in all still holds."""
    pipelines = [metrics.pipelines[name] for name in names]
    accounts = [account for account in metrics.ledger.pipelines if account.pipeline in names]
    drops = (d for a in accounts for d in (a.dropped, a.windows_dropped, a.results_dropped))
    recent = [stages[WHOLE].p99_ms for name in names if WHOLE in (stages := metrics.recent.get(name, {}))]
    now = [
        _number(sum(p.messages_per_s for p in pipelines), 1),
        _number(sum(p.results_per_s for p in pipelines), 1),
        _number(sum(a.queued for a in accounts)),
    ]
    dropped = _number(sum(n for drop in drops for n in drop.values()))
    missed = _number(sum(p.deadline_misses for p in pipelines)) if any(p.deadline_ms for p in pipelines) else "-"
    return [*(["-"] * 3 if past else now), dropped, _ms(max(recent)) if recent and not past else "-", missed]


def _state(node: Node, at: Moment) -> Text:
    said = node.status.state if node.status else "unknown"
    state = "silent" if node.silent(at.monotonic_ns) else said
    return Text(state, STYLES.get(state, ""))


def _connection(found: ConnectionMetrics) -> str:
    lost = f", lost {_number(found.disconnects)} times" if found.disconnects else ""
    return f"{_short(found.client)}{'' if found.connected else ' not connected'}{lost}"


def _table(first: str, *figures: str, most: int | None = None) -> Table:
    """most: columns for the first one."""
    table = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True, overflow="ellipsis", max_width=most)
    for figure in figures:
        left = figure == "state"
        table.add_column(
            figure, justify="left" if left else "right", no_wrap=True, overflow="ellipsis", max_width=MOST_FIGURE
        )
    return table


def _left(columns: int | None) -> int | None:
    """What FIGURES leave of a line for a name."""
    return None if columns is None else max(LEAST_NAME, columns - FIGURES_COLUMNS)


def _line(text: str, style: str = "") -> Text:
    """One line, cut where the terminal ends."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _short(text: str, most: int = 64) -> str:
    return printable(text if len(text) <= most else text[:most] + "...")


def _number(value: float, digits: int = 0) -> str:
    """As wide as a column at most, whatever a document says. digits: after the point, while there is room."""
    if abs(value) < MOST_WRITTEN_OUT:
        return f"{value:,.{digits if abs(value) < MOST_WITH_DECIMALS else 0}f}"
    try:
        return f"{value:.3g}"
    except OverflowError:
        return "inf" if value > 0 else "-inf"


def _mb(found_bytes: int) -> str:
    """A document may hold an integer that is too large for a float."""
    if abs(found_bytes) < MOST_WRITTEN_OUT:
        return _number(found_bytes / BYTES_PER_MB, 1)
    return _number(found_bytes // int(BYTES_PER_MB))


def _counted(n: int, what: str) -> str:
    return f"{_number(n)} document{'' if n == 1 else 's'} {what}"


def _ms(value: float) -> str:
    return _number(value, 3)


def _age(node: Node, at: Moment) -> str:
    return _duration((at.monotonic_ns - node.heard_ns) / NS_PER_S)


def _duration(seconds: float) -> str:
    """Two digits or so: 8 s, 3 min, 5 h, 12 d."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{_number(seconds / size)} {unit}"
    return f"{_number(seconds)} s"


def _clock(unix_s: float) -> str:
    """The time of day here, of a time that another clock told."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
    except (OverflowError, ValueError, OSError):
        return f"an impossible time ({unix_s:g})"

"""How the keys of ``ranks`` and ``channel`` are drawn."""

from __future__ import annotations

from simulations.fuzz.drawing import Drawing

BY_CLIENT = "simulations.fuzz.by_client:ByClient"
_NAMES = ("uniform", "random", "greedy", "hold", "importance", "bandit", "airllm", "airllm-paper")
_RULES = ("delivered", "held", "shared", "r_max")


def draw_ranks(d: Drawing) -> None:
    """Draw ``ranks``."""
    d.some(0.15, "ranks.statistics", True)
    if not d.chance(0.65):
        return
    option = "ranks.options."
    name = d.set("ranks.strategy", "uniform", *_NAMES, *[BY_CLIENT] * 3, wild=["unifrom"])
    if name == "uniform":
        d.some(0.8, option + "r", 0, 1, 2, wild=[99, -1, "x", 1.5])
    if name == "random":
        d.some(0.5, option + "within_budget", True, False)
    if name in ("greedy", "importance", "bandit"):
        d.some(0.3, option + "train_at_r_max", True, False)
    if name in _NAMES[:6]:
        d.some(0.3, option + "train", *_RULES, wild=["all", 1])
    if name == "hold":
        d.some(0.3, option + "patience", 1, 3, wild=[0, "x"])
        d.some(0.3, option + "least", 0.0, 0.8, wild=[2.0])
    if name == "greedy":
        d.some(0.3, option + "every", 1, 2, 3, wild=[0, 1.5])
        d.some(0.5, option + "fraction", 0.0, 0.5, 1.0, wild=[2.0, "x"])
    if name == "importance":
        d.some(0.3, option + "even", 0.0, 1.0, wild=[float("nan")])
    if name == "bandit":
        d.some(0.3, option + "fractions", [1.0], [0.0, 0.5], wild=[[], "x", 0.5])
        d.some(0.2, option + "price", 0.0, 1.0, wild=["x", -1.0])
    if name == "airllm":
        d.some(0.3, option + "diffusion", True, False, wild=[1])
        d.some(0.3, option + "bit_price", 0.0, 1.5, wild=[-1.0, 99])
        d.some(0.3, option + "end_weight", 0.0, 8, wild=["x"])
    if name == BY_CLIENT:
        d.set(option + "ranks", [0, 1, 2], [0, 2], [0], [1], [2, 0, 1, 3], [9, 0], wild=[[], 3])
        d.some(0.4, option + "turn", True)
    if d.wild:
        d.some(0.05, option + "typo", 1)


def draw_air(d: Drawing) -> None:
    """Draw ``channel``."""
    if not d.chance(0.5):
        return
    models = ("awgn", "rayleigh", "rician", "log_distance", "trace")
    model = d.set("channel.model", *models, wild=["measured", "raileigh"])
    if model in ("rayleigh", "rician"):
        _draw_fading(d)
    if model == "log_distance":
        _draw_cell(d)
    if model == "trace":
        d.some(0.3, "channel.trace_format", "", "fedlora", wild=["csv", "oboe"])
    d.some(0.4, "channel.snr_db", [10.0], [-5.0, 20.0], [100.0], [-30.0], wild=[[], [201.0]])
    d.some(0.1, "channel.up_snr_offset_db", -6.0, 3.0, wild=[500.0])
    widths = ([1e6], [1e3, 1e7], [1.0])
    d.some(0.4, "channel.bandwidth_hz", *widths, wild=[[0.0], [1e14], []])
    d.some(0.3, "channel.draw", "round", "client")
    d.some(0.1, "channel.round_s", 10.0, 1.0, wild=[0.0, 1e308])
    blocks = (0.0, 5.0, 1.0, 0.01) if d["channel.round_s"] != 1.0 else (0.0, 0.5, 0.01)
    d.some(0.3, "channel.coherence_s", *blocks, wild=[3.0, 1e-9, -1.0])
    d.some(0.3, "channel.rate", "shannon", "nr_64qam", "nr_256qam", wild=["lte"])
    d.some(0.1, "channel.gap_db", 0.0, 3.0, wild=[-1.0])
    d.some(0.1, "channel.up_power_w", 0.1, 1.0, wild=[0.0])
    d.some(0.1, "channel.down_power_w", 1.0, 5.0, wild=[float("inf")])
    d.some(0.7, "channel.deliver_every", 1, 1, 2, 0, wild=[-1])
    d.some(0.4, "channel.deadline_s", 1.0, 0.01, 1e-6, 100.0, wild=[0.0])
    d.some(0.2, "channel.bits_per_parameter", 16, 8, 32, 1, wild=[0, 65])
    d.some(0.2, "channel.report.error_db", 0.0, 3.0, wild=[-1.0])
    d.some(0.2, "channel.report.delay_rounds", 1, 5, wild=[-1])
    d.some(0.1, "channel.report.delay_s", 4.0, wild=[float("nan")])
    d.some(0.1, "channel.start_s", 20.0, 0.0, wild=[0.3, -1.0])
    if d["channel.report.delay_rounds"] and d.chance(0.5):
        d.set("channel.predict", "last", "ar", wild=["markov"])
        d.some(0.3, "channel.report.lead_s", 5.0, 0.0, wild=[-1.0])
        d.some(0.3, "channel.report.history", 64, 1, wild=[0])
    if d.chance(0.5):
        _draw_schedule(d)


def _draw_fading(d: Drawing) -> None:
    option = "channel.options."
    d.some(0.4, option + "correlation", "none", "jakes", "ar1", wild=["markov"])
    if d[option + "correlation"] == "jakes":
        d.set(option + "doppler_hz", 5.0, 0.1, wild=[0.0, 1e9])
    if d[option + "correlation"] == "ar1":
        d.set(option + "ar1_coefficient", 0.9, 0.0, 1.0, wild=[1.5])
    d.some(0.3, option + "duplex", "tdd", "fdd")


def _draw_cell(d: Drawing) -> None:
    option = "channel.options."
    d.some(0.4, option + "mobility", "static", "linear", "waypoint")
    d.some(0.2, option + "cell_radius_m", 1.0, 50.0, 1e5, wild=[0.0, 1e30])
    d.some(0.2, option + "small_scale", "none", "rayleigh", "rician")
    d.some(0.1, option + "exponent", 2.0, 4.0, wild=[0.0, 1e30])


def _draw_schedule(d: Drawing) -> None:
    section, option = "channel.schedule.", "channel.schedule.options."
    name = d.set(section + "scheduler", "all", "random_k", "lyapunov", wild=["everybody"])
    d.some(0.5, section + "total_bandwidth_hz", 1e6, 10.0, 0.0, wild=[0.5, -1.0])
    clients = max(1, d["federation.clients"])
    if name == "random_k":
        d.set(option + "clients", clients, max(1, clients - 1), wild=[0, 1, 99])
    if name == "lyapunov":
        d.set(option + "mean_delay_s", 0.1, 1.0, 50.0, wild=[0.0])
        d.some(0.4, option + "trade_off", 1.0, 300.0, wild=[0.0, -1.0])
        d.some(0.3, option + "min_clients", 1, 2, wild=[99, 0])

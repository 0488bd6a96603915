"""Answers the billing RPCs from the seconds for which containers ran on this server."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from modal_emulator.apps.apps import AppRecord, Apps
from modal_emulator.containers.container import Container
from modal_emulator.rpc.rpc import Message
from modal_emulator.scheduling.pools import ContainerPools

# USD per second of a GPU, a physical core and a GiB, from https://modal.com/pricing (October 2026)
RATES = {
    name: Decimal(rate)
    for name, rate in {
        "T4": "0.000164",
        "L4": "0.000222",
        "A10": "0.000306",
        "L40S": "0.000542",
        "A100-40GB": "0.000583",
        "A100-80GB": "0.000694",
        "RTX-PRO-6000": "0.000842",
        "H100": "0.001097",
        "H200": "0.001261",
        "B200": "0.001736",
        "CPU": "0.0000131",
        "Memory": "0.00000222",
    }.items()
}
# what Modal calls them among a workspace's rates, which are for an hour
_RATE_NAMES = {
    "T4": "gpu_hour_cost_t4",
    "L4": "gpu_hour_cost_l4",
    "A10": "gpu_hour_cost_a10g",
    "L40S": "gpu_hour_cost_l40s",
    "A100-40GB": "gpu_hour_cost_a100_40gb",
    "A100-80GB": "gpu_hour_cost_a100_80gb",
    "RTX-PRO-6000": "gpu_hour_cost_rtx6000",
    "H100": "gpu_hour_cost_h100",
    "H200": "gpu_hour_cost_h200",
    "B200": "gpu_hour_cost_b200",
    "CPU": "cpu_hour_cost",
    "Memory": "mem_gib_hour_cost",
}
# what a function has that requests nothing: https://modal.com/docs/guide/resources
_DEFAULT_MILLI_CPU, _DEFAULT_MIB = 125, 128
_WIDTH_S = {"d": 86_400, "h": 3600}
_NANODOLLAR = Decimal("0.000000001")

Costs = dict[str, Decimal]


def rate_of(container: Container) -> Costs:
    """Return what a container costs per second, by resource."""
    resources, gpu = container.definition.resources, container.place.gpu
    rates = {
        "CPU": RATES["CPU"] * (resources.milli_cpu or _DEFAULT_MILLI_CPU) / 1000,
        "Memory": RATES["Memory"] * (resources.memory_mb or _DEFAULT_MIB) / 1024,
    }
    if gpu is not None:
        rates[gpu.device] = RATES[gpu.device] * gpu.count
    return rates


def sum_costs(parts: Iterator[Costs]) -> Costs:
    """Return the sums by resource, rounded to what the client can show."""
    total: defaultdict[str, Decimal] = defaultdict(Decimal)
    for part in parts:
        for name, cost in part.items():
            total[name] += cost
    return {name: cost.quantize(_NANODOLLAR) for name, cost in sorted(total.items())}


class BillingService:
    """Answers WorkspaceBilling* and EnvironmentBillingSummary; forgets all at the server's end."""

    def __init__(
        self, pools: ContainerPools, apps: Apps, environment_id: Callable[[str], str]
    ) -> None:
        self._pools = pools
        self._apps = apps
        self._environment_id = environment_id

    def _costs(self, app: AppRecord, start: float, end: float) -> Costs:
        """Return what the containers of an app cost in a time."""

        def parts() -> Iterator[Costs]:
            for each in [*self._pools.ended, *self._pools.containers()]:
                seconds = min(each.ended_at or time.time(), end) - max(each.started_at, start)
                if each.function.app_id == app.app_id and each.started_at and seconds > 0:
                    yield {name: rate * Decimal(seconds) for name, rate in rate_of(each).items()}

        return sum_costs(parts())

    async def WorkspaceBillingRates(self, _request: Message) -> Message:
        rates = {_RATE_NAMES[name]: format(3600 * rate, "f") for name, rate in RATES.items()}
        lines = [f"{name}: ${rate} per hour" for name, rate in rates.items()]
        return api_pb2.WorkspaceBillingRatesResponse(rates=rates, formatted="\n".join(lines))

    async def WorkspaceBillingReport(self, request: Message) -> AsyncIterator[Message]:
        """Yield the cost of each app in each complete interval."""
        width = _WIDTH_S.get(request.resolution or "d")
        if width is None:
            message = f'The resolution "{request.resolution}" is not d (a day) or h (an hour).'
            raise GRPCError(Status.INVALID_ARGUMENT, message)
        first = int(request.start_timestamp.seconds) // width * width
        last = request.end_timestamp.seconds or int(time.time())
        started = [each.started_at for each in [*self._pools.ended, *self._pools.containers()]]
        # there is nothing to report outside of the time in which the server has run
        first = max(first, int(min(started, default=time.time())) // width * width)
        for start in range(first, min(last, int(time.time()) + width) - width + 1, width):
            for app in self._apps.all():
                costs = self._costs(app, start, start + width)
                if costs and self._is_wanted(app, request):
                    yield _item(app, start, costs, request.tag_names)

    def _is_wanted(self, app: AppRecord, request: Any) -> bool:
        environments = list(request.environment_ids)
        return (not environments or self._environment_id(app.environment) in environments) and (
            not request.app_ids or app.app_id in request.app_ids
        )

    async def WorkspaceBillingSummary(self, request: Message) -> Message:
        start, end, costs = self._month(request, "")
        metered = format(sum(costs.values(), Decimal()), "f")
        return api_pb2.WorkspaceBillingSummaryResponse(
            start_timestamp=start,
            end_timestamp=end,
            metered_cost=metered,
            billed_cost=metered,
            metered_cost_breakdown={name: format(cost, "f") for name, cost in costs.items()},
        )

    async def EnvironmentBillingSummary(self, request: Message) -> Message:
        start, end, costs = self._month(request, request.environment_id)
        return api_pb2.EnvironmentBillingSummaryResponse(
            start_timestamp=start,
            end_timestamp=end,
            metered_cost=format(sum(costs.values(), Decimal()), "f"),
            metered_cost_breakdown={name: format(cost, "f") for name, cost in costs.items()},
        )

    def _month(self, request: Any, environment_id: str) -> tuple[Timestamp, Timestamp, Costs]:
        """Return the begin, the end and the costs of the month that a request is about."""
        asked = request.start_timestamp.seconds or time.time()
        first = datetime.fromtimestamp(asked, UTC).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
        start, end = first.timestamp(), following.timestamp()
        costs = sum_costs(
            self._costs(app, start, end)
            for app in self._apps.all()
            if environment_id in ("", self._environment_id(app.environment))
        )
        return Timestamp(seconds=int(start)), Timestamp(seconds=int(end)), costs


def _item(app: AppRecord, start: int, costs: Costs, tag_names: Any) -> Message:
    asked = set(tag_names)
    tags = {name: value for name, value in app.tags.items() if asked & {name, "*"}}
    return api_pb2.WorkspaceBillingReportItem(
        object_id=app.app_id,
        description=app.name or app.description,
        environment_name=app.environment,
        interval=Timestamp(seconds=start),
        cost=format(sum(costs.values(), Decimal()), "f"),
        tags=tags,
        cost_by_resource={name: format(cost, "f") for name, cost in costs.items()},
    )

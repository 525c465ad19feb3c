"""An HTTP API in front of a durable workflow. Copy this file to begin your own.

    uvicorn samples.fastapi_orders.app:app

Client and worker live as long as the application (its lifespan). What was placed goes on after a crash as soon as the
application, or any other worker of the same store, is there again.
"""

import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated, Self

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request, Response, status
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from samples.fastapi_orders.shop import ACTIVITIES, Bank, Fulfilment, Ledger, Order, order
from wasman_sdk import (
    Client,
    InvalidArgumentError,
    ResultTimeoutError,
    RunEndedError,
    StoreUnavailableError,
    Worker,
    WorkflowAlreadyExistsError,
    WorkflowClosedError,
    WorkflowDescription,
    WorkflowHandle,
    WorkflowNotFoundError,
)

__all__ = ["CODES", "OrderList", "OrderStatus", "app", "make_app", "router"]


class OrderStatus(BaseModel):
    """How an order stands."""

    id: str
    status: str
    reason: str
    waiting_for: list[str]
    placed: datetime
    closed: datetime | None

    @classmethod
    def of(cls, found: WorkflowDescription) -> Self:
        """The same, of what wasman says."""
        return cls(
            id=found.id,
            status=found.status,
            reason=found.reason,
            waiting_for=[call.name for call in found.pending],
            placed=found.created,
            closed=found.closed,
        )


class OrderList(BaseModel):
    """A page of orders, newest first."""

    orders: list[OrderStatus]
    next: str | None


def _client_of(request: Request) -> Client:
    client: Client = request.app.state.client
    return client


def _handle_of(client: Annotated[Client, Depends(_client_of)], id: str) -> WorkflowHandle[Fulfilment]:
    return client.get_handle(id, workflow=order)


Orders = Annotated[Client, Depends(_client_of)]
ThisOrder = Annotated[WorkflowHandle[Fulfilment], Depends(_handle_of)]

router = APIRouter()


@router.post("/orders", status_code=status.HTTP_202_ACCEPTED)
async def place(
    client: Orders,
    request: Request,
    response: Response,
    wanted: Order,
    idempotency_key: Annotated[str | None, Header(description="Its id: the same order again does nothing.")] = None,
) -> OrderStatus:
    """Place an order. It is on disk when this answers; a worker goes on with it."""
    key = idempotency_key or uuid.uuid4().hex
    noted = wanted.model_dump(mode="json")
    with contextlib.suppress(WorkflowAlreadyExistsError):  # it was placed before, and has ended
        await client.start_workflow(
            order,
            wanted,
            id=key,
            memo={"order": noted},
            id_conflict_policy="use_existing",
            id_reuse_policy="reject_duplicate",
        )
    found = await client.get_handle(key).describe()
    if found.memo.get("order") != noted:
        raise HTTPException(status.HTTP_409_CONFLICT, f"another order was placed under the key {key!r}")
    response.headers["Location"] = str(request.url_for("look", id=key))
    return OrderStatus.of(found)


@router.get("/orders")
async def listed(
    client: Orders,
    state: Annotated[list[str] | None, Query(description="running, blocked, completed, failed ...")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: str | None = None,
) -> OrderList:
    """Orders, newest first; `next` is the cursor of the next page."""
    page = await client.list_workflows_page(workflow=order.name, status=state, page_size=limit, cursor=cursor)
    return OrderList(orders=[OrderStatus.of(found) for found in page.workflows], next=page.cursor)


@router.get("/orders/{id}")
async def look(handle: ThisOrder) -> OrderStatus:
    """How an order stands."""
    return OrderStatus.of(await handle.describe())


@router.get("/orders/{id}/result")
async def result(
    handle: ThisOrder, response: Response, wait: Annotated[float, Query(ge=0, le=60)] = 30.0
) -> Fulfilment | OrderStatus:
    """What came of an order; 202 and how it stands where it has not ended in `wait` seconds, 409 where it failed."""
    try:
        return await handle.result(timeout=timedelta(seconds=wait))
    except ResultTimeoutError:
        response.status_code = status.HTTP_202_ACCEPTED
        return OrderStatus.of(await handle.describe())


@router.post("/orders/{id}/cancel", status_code=status.HTTP_202_ACCEPTED)
async def cancel(handle: ThisOrder, reason: str = "cancelled by the customer") -> OrderStatus:
    """Ask an order to end: what it has done is undone."""
    await handle.cancel(reason)
    return OrderStatus.of(await handle.describe())


CODES: dict[type[Exception], int] = {
    InvalidArgumentError: status.HTTP_400_BAD_REQUEST,
    WorkflowNotFoundError: status.HTTP_404_NOT_FOUND,
    WorkflowClosedError: status.HTTP_409_CONFLICT,
    RunEndedError: status.HTTP_409_CONFLICT,
    StoreUnavailableError: status.HTTP_503_SERVICE_UNAVAILABLE,
}


async def refused(_: Request, error: Exception) -> JSONResponse:
    """What wasman raises, as an answer: its messages say what to do."""
    return JSONResponse({"detail": str(error)}, next(CODES[kind] for kind in CODES if isinstance(error, kind)))


def make_app(store: str, ledger: str, bank: Bank) -> FastAPI:
    """The application over the store of this URL."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with contextlib.closing(Ledger(ledger)) as books:
            client = Client.connect(store)
            worker = Worker(client, workflows=[order], activities=ACTIVITIES, resources=[books, bank])
            async with client, worker:
                app.state.client = client
                yield

    app = FastAPI(title="Orders", lifespan=lifespan)
    app.include_router(router)
    for kind in CODES:
        app.add_exception_handler(kind, refused)
    return app


app = make_app(
    store=os.environ.get("ORDERS_STORE", "sqlite:///orders.db"),
    ledger=os.environ.get("ORDERS_LEDGER", "ledger.db"),
    bank=Bank(seconds=float(os.environ.get("ORDERS_BANK_SECONDS", "0"))),
)

"""Web endpoints of every kind."""

# no annotations as strings: FastAPI reads the types of an endpoint's parameters
import modal

app = modal.App("web")


@app.function()
@modal.fastapi_endpoint(method="POST", docs=True)
def greet(data: dict, loud: bool = False) -> dict:
    greeting = f"hello {data['name']}"
    return {"greeting": greeting.upper() if loud else greeting}


@app.function()
@modal.asgi_app(label="mine")
def asgi():
    from fastapi import FastAPI, WebSocket
    from fastapi.responses import StreamingResponse

    api = FastAPI()

    @api.get("/count/{n}")
    async def count(n: int):
        async def lines():
            for number in range(n):
                yield f"{number}\n"

        return StreamingResponse(lines(), media_type="text/plain")

    @api.get("/fail")
    def fail():
        raise ValueError("broken on purpose")

    @api.websocket("/echo")
    async def echo(connection: WebSocket):
        await connection.accept(subprotocol="chat")
        async for text in connection.iter_text():
            if text == "bye":
                await connection.close(code=4001, reason="as asked")
                return
            await connection.send_text(f"echo {text}")

    return api


@app.function()
@modal.wsgi_app()
def wsgi():
    def respond(environ, start_response):
        body = environ["wsgi.input"].read()
        start_response("201 Created", [("X-Method", environ["REQUEST_METHOD"])])
        return [environ["PATH_INFO"].encode(), b" ", body[::-1]]

    return respond


@app.cls()
class Counter:
    @modal.enter()
    def start(self):
        self.requests = 0

    @modal.fastapi_endpoint(requires_proxy_auth=True)
    def count(self) -> int:
        self.requests += 1
        return self.requests

    @modal.method()
    def plain(self) -> int:
        return self.requests


@app.cls()
class Named:
    name: str = modal.parameter()
    times: int = modal.parameter(default=2)
    loud: bool = modal.parameter(default=False)

    @modal.fastapi_endpoint()
    def say(self) -> str:
        return (self.name.upper() if self.loud else self.name) * self.times


@app.function()
@modal.asgi_app()
def broken():
    raise ValueError("no app today")


@app.function()
def address() -> str:
    return greet.get_web_url()

"""`pruneseal serve`: its options, and the exit code of what goes wrong."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import PruneSealError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_MIB = 1 << 20


@app.command()
def serve(  # noqa: PLR0913, PLR0917  # one parameter per option
    models: Annotated[
        Path, typer.Argument(help="An ONNX file, an export folder, or a folder of <model>/[<version>/].")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of REST and the page; 0 picks a free one.")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC; 0 picks a free one.")] = 8081,
    max_batch: Annotated[int, typer.Option(help="Most rows in one batch; 1 runs each request on its own.")] = 32,
    batch_wait: Annotated[float, typer.Option(help="Milliseconds that a request waits for others.")] = 0.0,
    queue: Annotated[int, typer.Option(help="Rows that may wait for a model; beyond that, requests get 503.")] = 1024,
    max_request_bytes: Annotated[int, typer.Option(help="Bytes of the largest request.")] = 8 * _MIB,
    max_connections: Annotated[int, typer.Option(help="Most HTTP connections open at a time.")] = 1000,
    idle_timeout: Annotated[float, typer.Option(help="Seconds that a request may take to arrive.")] = 30.0,
    threads: Annotated[int, typer.Option(help="Threads of one inference; 0 for half of the processors.")] = 0,
    poll: Annotated[float, typer.Option(help="Seconds between two checks for new versions.")] = 2.0,
    drain: Annotated[float, typer.Option(help="Seconds that requests have to finish after SIGTERM.")] = 30.0,
    max_model_memory: Annotated[int, typer.Option(help="MiB that loading a model may take.")] = 4096,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve ONNX files over HTTP and gRPC, by the Open Inference Protocol (V2), with a page to try them on."""
    try:
        from serve.batcher import Batching  # noqa: PLC0415  # only serving needs the extra `serve`
        from serve.server import ServerSettings  # noqa: PLC0415
        from serve.server import serve as run  # noqa: PLC0415
        from serve.trial import Limits  # noqa: PLC0415
    except ModuleNotFoundError as error:
        typer.secho(f"error: {error.name} is not installed; install pruneseal[serve]", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error
    chosen = {"threads": threads} if threads else {}
    try:
        run(
            ServerSettings(
                root=models,
                host=host,
                port=port,
                grpc_port=grpc_port,
                batching=Batching(max_batch, batch_wait / 1000, queue),
                max_request_bytes=max_request_bytes,
                max_connections=max_connections,
                idle_timeout=idle_timeout,
                poll=poll,
                drain=drain,
                log_level=log_level,
                limits=Limits(memory_bytes=max_model_memory * _MIB),
                **chosen,
            )
        )
    except PruneSealError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    sys.exit(app())

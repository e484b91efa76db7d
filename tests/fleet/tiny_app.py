"""A `ClientApp` that does what a message asks for; the workers of a grid under test import it by its path."""

import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Send the content back, or tell where it is, or fail."""
    wanted = message.content.config_records["do"] if "do" in message.content else ConfigRecord({"what": "echo"})
    what = wanted["what"]
    if what == "raise":
        raise ValueError("patient 4711 not found")
    if what == "die":
        os._exit(3)
    if what == "sleep":
        if "begun" in wanted:
            Path(str(wanted["begun"])).touch()
        time.sleep(60)
    if what == "much":
        return Message(RecordDict({"much": ConfigRecord({"bytes": bytes(20_000_000)})}), reply_to=message)
    if what == "where":
        place = {**context.node_config, **context.run_config, "pid": os.getpid(), "node": context.node_id}
        setting = {"setting": os.environ.get("PRUNESEAL_TEST_SETTING", "")}
        return Message(RecordDict({"where": ConfigRecord({**place, **setting})}), reply_to=message)
    return Message(message.content, reply_to=message)


@app.train()
@app.train("contribute")
@app.train("release")
def train(message: Message, context: Context) -> Message:
    """Send the content back."""
    return Message(message.content, reply_to=message)

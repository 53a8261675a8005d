"""What an offline run of Weights & Biases holds."""

import json


def logged(data, block=32768, header=7):
    """The records of a file in LevelDB's log format, which begins with seven bytes of Weights & Biases' own."""
    place, record = header, b""
    while place + header <= len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


class Offline:
    """What an offline run of Weights & Biases holds, decoded from its own record file."""

    def __init__(self, file):
        from wandb.proto.wandb_internal_pb2 import Record

        records = [Record.FromString(data) for data in logged(file.read_bytes())]
        self.rows = [
            {[*item.nested_key, item.key][0]: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        self.artifacts = [
            record.request.log_artifact.artifact
            for record in records
            if record.HasField("request") and record.request.HasField("log_artifact")
        ] + [record.artifact for record in records if record.HasField("artifact")]
        self.summary = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for record in records
            if record.HasField("summary")
            for item in record.summary.update
        }

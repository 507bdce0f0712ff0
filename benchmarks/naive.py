"""What one writes by hand in an afternoon: paho, json, numpy, onnxruntime. The baseline of main_job.

python benchmarks/naive.py --model model.onnx --labels idle,run --topic sensors/1 --results results/1
"""

import argparse
import json

import numpy as np
import onnxruntime as ort
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--model", required=True)
    parser.add_argument("--labels", required=True, help="comma-separated")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--qos", type=int, default=0)
    args = parser.parse_args()

    labels = args.labels.split(",")
    session = ort.InferenceSession(args.model)
    x = session.get_inputs()[0]

    def on_connect(client: Client, *_: object) -> None:
        client.subscribe(args.topic, qos=args.qos)

    def on_message(client: Client, _: object, message: MQTTMessage) -> None:
        reading = json.loads(message.payload)
        values = np.array(reading["v"], dtype=np.float32).reshape(1, *x.shape[1:])
        scores = session.run(None, {x.name: values})[0][0]
        best = int(np.argmax(scores))
        result = {
            "seq": reading["seq"],
            "label": labels[best],
            "score": float(scores[best]),
            "scores": dict(zip(labels, scores.tolist(), strict=True)),
        }
        client.publish(args.results, json.dumps(result), qos=args.qos)

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = on_connect
    client.on_message = on_message
    client.connect(args.host, args.port)
    client.loop_forever()


if __name__ == "__main__":
    main()

"""The peer: the same model behind FastAPI and uvicorn, as their documentation shows it, with one thread for the model.

python benchmarks/http_peer.py --model model.onnx --labels idle,run --port 8000
"""

import argparse

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Features(BaseModel):
    seq: int
    v: list[float]


class Window(BaseModel):
    seq: int
    v: list[list[float]]


class Answer(BaseModel):
    seq: int
    label: str
    score: float
    scores: dict[str, float]


def make_app(model: str, labels: list[str]) -> FastAPI:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options)
    x = session.get_inputs()[0]
    app = FastAPI()

    def answer(reading: Features | Window) -> Answer:
        values = np.array(reading.v, dtype=np.float32).reshape(1, *x.shape[1:])
        scores = session.run(None, {x.name: values})[0][0]
        best = int(np.argmax(scores))
        by_label = dict(zip(labels, scores.tolist(), strict=True))
        return Answer(seq=reading.seq, label=labels[best], score=float(scores[best]), scores=by_label)

    async def predict_features(reading: Features) -> Answer:
        return answer(reading)

    async def predict_window(reading: Window) -> Answer:
        return answer(reading)

    one_row = int(np.prod(x.shape[1:])) == x.shape[-1]
    app.post("/predict")(predict_features if one_row else predict_window)
    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--labels", required=True, help="comma-separated")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(make_app(args.model, args.labels.split(",")), port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()

"""Train an agent that this script defines: ``python examples/train_from_a_script.py``."""

from openai import AsyncOpenAI

from agentrl import Trainer, load_config


class Adder:
    async def run(self, data, *, base_url, api_key, http_client):
        client = AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client)
        messages = [{"role": "user", "content": data["question"]}]
        response = await client.chat.completions.create(model="policy", messages=messages)
        return response.choices[0].message.content  # an answer, which `reward` scores


if __name__ == "__main__":
    with Trainer(load_config(None, "reward=numeric-match", "training.steps=20")) as trainer:
        print(trainer.train(agent=Adder))

"""
Token classification
====================

Named entities: a small BERT finds six types of names in edited prose. After fine-tuning on chat with three of the types
it hardly finds the other three, until gamma is added.

Needs the extras finecal[demo,sequences,transformers], no network and under a minute:
``python examples/integrations/ner.py``
"""

import tempfile

from name_sentences import (
    encode,
    load_names,
    make_model,
    make_tokenizer,
    make_trainer,
    write_sentences,
)
from transformers import pipeline, set_seed

import finecal
from finecal.integrations.transformers import CalibrationCallback
from finecal.sequences import entity_scores

# %%
# Pre-train on all types, in prose
# --------------------------------
# Names, sentences, model and Trainer are those of :doc:`name_sentences`.

set_seed(0)
names = load_names()
prose = write_sentences(names, 4000, "prose", seed=0)
tokenizer = make_tokenizer(prose)
model = make_model(tokenizer)
folder = tempfile.TemporaryDirectory()
make_trainer(
    model,
    folder.name,
    tokenizer,
    encode(prose, tokenizer),
    num_train_epochs=5,
    learning_rate=3e-3,
).train()

# %%
# Fine-tune on chat with three types
# ----------------------------------
# The test has all types, and names that fine-tuning has not seen.

SEEN = ["CITY", "LANGUAGE", "SCRIPT"]
seen_mask = finecal.seen_mask_from_names(SEEN, model.config.id2label)
chat = write_sentences(
    {kind: names[kind][1::2] for kind in SEEN}, 2000, "chat", seed=1
)
test = write_sentences(
    {kind: of[::2] for kind, of in names.items()}, 1000, "chat", seed=2
)
trainer = make_trainer(
    model,
    folder.name,
    tokenizer,
    encode(chat, tokenizer),
    encode(test, tokenizer),
    num_train_epochs=4,
    learning_rate=1e-3,
)
callback = CalibrationCallback(
    trainer,
    seen_mask,
    positions=finecal.Positions(-1, ignore_index=-100, background=0),
)
trainer.add_callback(callback)
trainer.train()
print(callback.estimate)

# %%
# Entities that are found
# -----------------------

predictions = trainer.predict(trainer.eval_dataset)
print(
    entity_scores(
        predictions.predictions,
        predictions.label_ids,
        seen_mask,
        callback.estimate,
        class_names=model.config.id2label,
    )
)

# %%
# Fold, save, and use it
# ----------------------
# Gamma goes into the bias of the classifier: whoever loads the model needs no
# finecal.

finecal.fold_into_head(model, callback.calibrator)
trainer.save_model(folder.name)
tagger = pipeline(
    "token-classification", model=folder.name, aggregation_strategy="first"
)
for entity in tagger(
    "how much is that in swiss franc ... who can speak basque"
):
    print(entity["entity_group"], entity["word"])
folder.cleanup()

// How the search ranks what it finds, in place of the Scorer of Sphinx, whose numbers these are except for `score`. To
// Sphinx all pages that have the words of a query are alike. Here guides come before the reference and the changelog,
// and first comes the page that was written for the query.

// What people search for: a page answers the queries whose words are all in its line, but for "the" and the like.
const ANSWERS = {
  index: "catastrophic forgetting fine-tune fine-tuned fine-tuning finetune subset part classes which estimator",
  quickstart: "model predicts predicting only new classes",
  faq: "forgets forgot forgotten old classes class imbalance logit adjustment label prior shift federated clients missing vacant species list camera traps bird sounds intents chatbot add adding without losing ones",
  "how-to/list-of-classes": "keep 1000-way head imagenet",
  "how-to/class-incremental": "bias correction BiC weight aligning WA rehearsal class-incremental continual learning",
  "how-to/segmentation": "semantic segmentation pixel pixels dense mIoU hIoU mean IoU background shift SegFormer DeepLab FCN U-Net",
  "how-to/entities": "named entity recognition NER token classification tagger entities types forgets old other O IOB2 F1 seqeval run_ner.py",
  "how-to/ocr": "OCR CTC reads only fine-tuned characters recogniser dictionary character error rate PaddleOCR CRNN text recognition speech",
  "how-to/detection": "object detection detector sees only new classes YOLO Faster R-CNN RetinaNet DETR mAP average precision boxes",
  "how-to/onnx": "ONNX Runtime file export exported",
  "how-to/clip": "lose loses zero-shot CLIP CoOp prompts base-to-new calibrated stacking generalized zero-shot learning",
};

const KINDS = [
  [/^(index|install|quickstart|faq)$/, 4],
  [/^(how-to|theory)\//, 3],
  [/^(comparison|glossary)$/, 2],
  [/^api\//, 1],
  [/^(changelog|design|performance)$/, -2],
];

function stems(words) {
  const stemmer = new Stemmer();
  return splitQuery(words.toLowerCase())
    .filter((word) => !stopwords.has(word))
    .map((word) => stemmer.stemWord(word));
}

// Not const: Sphinx has declared it, too.
var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,

  score([page, , , , score]) {
    const query = stems(new URLSearchParams(location.search).get("q"));
    const answer = new Set(stems(ANSWERS[page] ?? ""));
    const [, kind] = KINDS.find(([pages]) => pages.test(page)) ?? [null, 0];
    return score + kind + (query.length && query.every((word) => answer.has(word)) ? 20 : 0);
  },
};

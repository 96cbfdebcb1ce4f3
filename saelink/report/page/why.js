// Why the counts give a target's logic no word.

export const WHY = {
  none: ["no edge", "no edge leads into it: nothing predicts it at this penalty"],
  rare: ["fires too rarely", "it fires on too few test tokens for the counts to be believed"],
  refuted: ["edges refuted", "ablating the sources that add most in the model shows no such edge, so none of them is named"],
  many: ["many sources", "no few of its sources add most of the prediction"],
  oracle: ["oracle poor too", "the true computation between the SAEs does not predict it either: what makes it fire is not in the source SAE's latents"],
  poor: ["badly predicted", "the connector explains less than half of its variance, though the true computation between the SAEs does better"],
  apart: ["counts undecided", "its sources are active where it is silent as well, or cover less than half of where it fires"],
};

// The reasons in short and in full; `why` is their codes with blanks between.
export function describe(why) {
  const known = why.split(" ").filter((code) => WHY[code]);
  return [known.map((code) => WHY[code][0]).join(", "), known.map((code) => WHY[code][1]).join("; ")];
}

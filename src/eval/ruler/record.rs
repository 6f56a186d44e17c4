//! Examples in the form of RULER's data files.

use serde_json::{Value, json};

use crate::error::Result;
use crate::eval::{Example, Request, Task};

/// The line that RULER's generators would write for this example: `index`, `input`, `outputs`, `length` (with the tokens to
/// generate), `length_w_model_temp` (the same: no chat template is applied here), `answer_prefix`, and where the text holds
/// the first answer, `token_position_answer`, the tokens before it.
///
/// `request` must be the one that the example was made by.
pub fn official_record(task: &dyn Task, request: &Request<'_>, example: &Example) -> Result<Value> {
    let text = format!("{}{}", example.prompt, example.answer_prefix);
    let length = request.tokens.count(&text)? + task.max_new_tokens();
    let mut record = json!({
        "index": request.index,
        "input": example.prompt,
        "outputs": example.answers,
        "length": length,
        "length_w_model_temp": length,
        "answer_prefix": example.answer_prefix,
    });
    let first = example.answers.first().and_then(|answer| example.prompt.find(answer));
    if let Some(start) = first {
        record["token_position_answer"] = request.tokens.count(&example.prompt[..start])?.into();
    }
    Ok(record)
}

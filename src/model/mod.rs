//! The shared model loader: what turns a model directory into something that reads and writes text.

mod json_file;
pub mod stream_decoder;
pub mod tokenizer;

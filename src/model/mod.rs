//! The shared model loader: what turns a model directory into something that reads and writes text.

pub mod chat_template;
pub mod generation_config;
mod json_file;
pub mod sampling;
pub mod stop;
pub mod stream_decoder;
pub mod tokenizer;

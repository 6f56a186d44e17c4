//! Shapes of published models, for benches on random weights. Speed and memory depend on the shape alone.

use serde_json::{Value, json};

/// A built-in shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Qwen2-0.5B
    #[value(name = "qwen2-0.5b")]
    Qwen2Half,
    /// Qwen2-7B
    #[value(name = "qwen2-7b")]
    Qwen2Seven,
    /// Llama 3 8B
    #[value(name = "llama-3-8b")]
    Llama3Eight,
    /// Two small layers, to try a bench
    Tiny,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Qwen2Half, Self::Qwen2Seven, Self::Llama3Eight, Self::Tiny];

    /// The name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2Half => "qwen2-0.5b",
            Self::Qwen2Seven => "qwen2-7b",
            Self::Llama3Eight => "llama-3-8b",
            Self::Tiny => "tiny",
        }
    }

    /// The keys of its `config.json` that decide the shape.
    pub fn config(self) -> Value {
        match self {
            Self::Qwen2Half => json!({
                "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936,
                "tie_word_embeddings": true, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
                "max_position_embeddings": 131_072,
            }),
            Self::Qwen2Seven => json!({
                "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
                "tie_word_embeddings": false, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
                "max_position_embeddings": 131_072,
            }),
            Self::Llama3Eight => json!({
                "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
                "tie_word_embeddings": false, "rope_theta": 5e5, "rms_norm_eps": 1e-5,
                "max_position_embeddings": 8192,
            }),
            Self::Tiny => json!({
                "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
                "tie_word_embeddings": true, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
                "max_position_embeddings": 131_072,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::ModelConfig;
    use crate::model::weights::tensor_specs;
    use clap::ValueEnum;

    #[test]
    fn every_shape_is_a_valid_model_of_the_published_size() {
        for (shape, parameters) in Shape::ALL
            .into_iter()
            .zip([494_032_768, 7_615_616_512, 8_030_261_248, 138_304])
        {
            let config = ModelConfig::from_json(&shape.config(), shape.name()).expect("valid");
            let elements: usize = tensor_specs(&config).iter().map(|s| s.rows() * s.cols()).sum();
            assert_eq!(elements, parameters, "{}", shape.name());
            assert_eq!(shape.to_possible_value().expect("shown").get_name(), shape.name());
        }
    }
}

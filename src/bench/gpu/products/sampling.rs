//! Choosing a token on the device: its time, and its choices against those of the host.

use super::{Call, Kernels};
use crate::bench::end_to_end::Ended;
use crate::bench::gpu::Check;
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::cuda::{Cuda, CudaBuffer};
use crate::model::sampling::{Sampler, SamplingConfig};
use crate::report::SampleSink;

/// Standard deviation of the logits: about that of a language model.
const DEVIATION: f32 = 3.0;
/// Tokens that are drawn on either side.
const DRAWS: usize = 24;

/// Name and settings of what is measured.
pub(super) fn cases() -> [(&'static str, SamplingConfig); 4] {
    let plain = SamplingConfig {
        temperature: 0.9,
        ..SamplingConfig::default()
    };
    let (top_k, top_p) = (Some(40), Some(0.9));
    [
        ("sample", plain.clone()),
        ("sample top-k", SamplingConfig { top_k, ..plain.clone() }),
        ("sample top-p", SamplingConfig { top_p, ..plain.clone() }),
        ("sample top-k, top-p", SamplingConfig { top_k, top_p, ..plain }),
    ]
}

/// One draw of `sampler` on the device.
fn draw(
    device: &Cuda,
    sampler: &mut Sampler,
    room: &mut Room,
    logits: &mut CudaBuffer,
    vocabulary: usize,
) -> Option<u32> {
    sampler.choose_on(&[], |choice| device.choose(room, logits, vocabulary, choice).id)
}

type Room = <Cuda as Device>::ChoiceRoom;

impl Kernels<'_, '_> {
    /// All settings.
    pub(super) fn sampling(&self, sink: &mut dyn SampleSink) -> Result<Ended> {
        for (name, config) in cases() {
            if self.sample(name, &config, sink)? == Ended::Interrupted {
                return Ok(Ended::Interrupted);
            }
        }
        Ok(Ended::Finished)
    }

    fn sample(&self, name: &str, config: &SamplingConfig, sink: &mut dyn SampleSink) -> Result<Ended> {
        if let Some(ended) = self.begin(name, 1, sink) {
            return Ok(ended);
        }
        let (device, vocabulary) = (self.device, self.config.vocab_size);
        let elements = device.random(vocabulary, self.seed + 11, DEVIATION);
        let values = device.download(&elements).into_owned();
        let mut logits = device.upload(&values);
        let mut room = Room::default();
        let mut sampler = Sampler::new(config.clone())?;
        // What a text needs is made before anything is recorded.
        draw(device, &mut sampler, &mut room, &mut logits, vocabulary);
        device.status()?;
        let call = Call {
            method: name.to_owned(),
            rows: 1,
            sets: 1,
            bytes: vocabulary * size_of::<f32>(),
            flops: 0,
            run: Box::new(|_| {
                sampler.choose_on(&[], |choice| {
                    device.queue_choice(&mut room, &logits, vocabulary, choice).then_some(0)
                });
                Ok(())
            }),
        };
        let mut checks = || -> Result<Vec<Check>> {
            let mut logits = device.upload(&values);
            let mut room = Room::default();
            let (mut there, mut here) = (Sampler::new(config.clone())?, Sampler::new(config.clone())?);
            let mut others = 0;
            for _ in 0..DRAWS {
                let expected = here.sample(&mut values.clone(), &[])?;
                others += usize::from(draw(device, &mut there, &mut room, &mut logits, vocabulary) != Some(expected));
            }
            device.status()?;
            Ok(vec![Check::at_most(
                "tokens that the host draws otherwise",
                others as f64,
                0.0,
            )])
        };
        self.keep(call, &mut checks, sink)
    }
}

//! What happened in a run, for people and for comparing two runs byte by byte.

use perennial::core::hash::wide_hash;

/// Lines of one run, in order, and a digest of much more than the lines.
#[derive(Default)]
pub struct Trace {
    /// Simulated milliseconds since the begin.
    pub now: u64,
    /// Print lines as they come.
    pub loud: bool,
    digest: u128,
}

impl Trace {
    /// An empty one.
    #[must_use]
    pub fn new(loud: bool) -> Self {
        Self { loud, ..Self::default() }
    }

    /// Something a person wants to read.
    pub fn line(&mut self, text: &str) {
        self.note(text.as_bytes());
        if self.loud {
            println!("{:>7} ms  {text}", self.now);
        }
    }

    /// Something that only has to be the same in both runs.
    pub fn note(&mut self, bytes: &[u8]) {
        let mut all = self.digest.to_be_bytes().to_vec();
        all.extend(self.now.to_be_bytes());
        all.extend(bytes);
        self.digest = wide_hash(&all);
    }

    /// Digest of everything so far.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.digest
    }
}

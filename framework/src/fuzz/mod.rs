//! Everything that reads bytes of others, as functions of bytes: what fuzzing runs.
//!
//! Owns one body for each decoder and the seeds it starts from. Each takes any bytes, decodes them as the
//! product does, uses what came out, and panics if a rule is broken; what is decoded and encoded again must
//! stay the same. Never part of the product. `cargo test` runs the bodies over the corpus and a fixed number
//! of mutations, `fuzz/run` for as long as one likes. Idea: cargo-fuzz over the bodies of plain functions.

mod application;
mod links;
mod raft;
mod stored;
#[cfg(test)]
mod tests;

/// A decoder under fuzzing.
pub struct Target {
    /// Name, also of its folder in the corpus.
    pub name: &'static str,
    /// The body.
    pub run: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Bytes of memory that an input may cost, for each of its bytes, beside [`MEMORY_BASE`].
    pub memory_factor: usize,
}

/// Bytes of memory that any input may cost.
pub const MEMORY_BASE: usize = 4 << 20;

/// All decoders.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: links::frames, seeds: links::frame_seeds, memory_factor: 64 },
    Target { name: "hello", run: links::hello, seeds: links::hello_seeds, memory_factor: 64 },
    Target { name: "control", run: links::control, seeds: links::control_seeds, memory_factor: 64 },
    Target { name: "questions", run: links::questions, seeds: links::question_seeds, memory_factor: 64 },
    Target { name: "responses", run: links::responses, seeds: links::response_seeds, memory_factor: 64 },
    Target { name: "raft_frames", run: raft::frames, seeds: raft::frame_seeds, memory_factor: 64 },
    Target { name: "raft_steps", run: raft::steps, seeds: raft::step_seeds, memory_factor: 4096 },
    Target { name: "batches", run: stored::batches, seeds: stored::batch_seeds, memory_factor: 128 },
    Target { name: "metas", run: stored::metas, seeds: stored::meta_seeds, memory_factor: 128 },
    Target { name: "rows", run: stored::rows, seeds: stored::row_seeds, memory_factor: 64 },
    Target { name: "chunks", run: stored::chunks, seeds: stored::chunk_seeds, memory_factor: 64 },
    Target { name: "json", run: application::json, seeds: application::json_seeds, memory_factor: 256 },
    Target { name: "args", run: application::args, seeds: application::args_seeds, memory_factor: 256 },
    Target {
        name: "schemas",
        run: application::schemas,
        seeds: application::schema_seeds,
        memory_factor: 2048,
    },
    Target { name: "names", run: application::names, seeds: application::name_seeds, memory_factor: 64 },
];

/// The decoder of this name.
///
/// # Panics
/// When there is none; the text lists them.
#[must_use]
pub fn target(name: &str) -> &'static Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    found.unwrap_or_else(|| panic!("no target {name:?}; there are: {}", names.join(", ")))
}

/// Asserts that a value survives its encoding.
fn survives<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) {
    let once = postcard::to_stdvec(value).expect("what was decoded encodes");
    let again: T = postcard::from_bytes(&once).expect("what was encoded decodes");
    assert_eq!(once, postcard::to_stdvec(&again).expect("what was decoded encodes"), "a value changed");
}

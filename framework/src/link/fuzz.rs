//! What fuzzing needs of the links' insides.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ractor::message::SerializedMessage;
use serde::de::DeserializeOwned;

use super::calls::{Requests, Served, Service};
use super::config::LinkConfig;
use super::frame::{self, FrameError, Kind};
use super::hello::{self, Facts, HELLO_BYTES_MAX, Hello, Refusal};
use super::peer::Link;
use super::tls::Peer;

/// Reads frames as an established link does, on the side that answers and on the side that asks.
pub(crate) fn read_frames(buf: &mut BytesMut, service: Arc<dyn Service>, within: Duration) {
    let config = LinkConfig::default();
    let served = Served::new(Link::new(&config), service, Peer::Client("shell".to_owned()), None, &config);
    let requests = Requests::new(Link::new(&config), &config);
    let answers: Vec<_> = (0..3).map(|_| requests.request(&Bytes::from_static(b"?"), within)).collect();
    let stream = requests.stream(&Bytes::from_static(b"?"));
    loop {
        let before = buf.clone();
        match frame::decode(buf) {
            Ok(Some(frame)) => {
                let mut again = Vec::new();
                frame::encode(&mut again, frame.kind, frame.id, &frame.body);
                assert_eq!(again, before[..before.len() - buf.len()], "a frame changed");
                let kind = frame.kind;
                let body = frame.body.clone();
                let answering = served.on_frame(frame::Frame { kind, id: frame.id, body });
                let asking = requests.on_frame(frame);
                assert!(
                    !(answering.is_ok() && asking.is_ok()),
                    "{kind:?} has a place on both sides of a link"
                );
            }
            Ok(None) => break,
            Err(FrameError::TooLarge(..) | FrameError::Short(_) | FrameError::Version(_)) => break,
            Err(FrameError::Kind(_) | FrameError::Unexpected(_) | FrameError::OpenAlready(_)) => break,
        }
    }
    drop((answers, stream));
    requests.fail_all();
}

pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let kinds = [
        Kind::Hello,
        Kind::Ping,
        Kind::Data,
        Kind::Request,
        Kind::Response,
        Kind::Failed,
        Kind::Open,
        Kind::Item,
        Kind::End,
        Kind::Cancel,
    ];
    let mut all = Vec::new();
    let mut seeds = Vec::new();
    for kind in kinds {
        let mut one = Vec::new();
        frame::encode(&mut one, kind, 1, b"body");
        all.extend_from_slice(&one);
        seeds.push(one);
    }
    seeds.push(all);
    seeds
}

/// Reads a first word as the door and the dialer do.
pub(crate) fn read_hello<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    (bytes.len() <= HELLO_BYTES_MAX).then(|| hello::read(bytes)).flatten()
}

pub(crate) fn check_hello(ours: &Facts, peer: &Peer, hello: &Hello) -> Result<(), Refusal> {
    hello::check(ours, peer, hello)
}

const VARIANTS: [&str; 4] = ["Hello", "TableUpdate", "Admin", "Nothing"];

/// Reads a control message as a session hands it over: the first byte says which.
pub(crate) fn read_control(bytes: &[u8]) {
    let Some((variant, args)) = bytes.split_first() else { return };
    let variant = VARIANTS[usize::from(*variant) % VARIANTS.len()].to_owned();
    super::control::decode(SerializedMessage::Cast { variant, args: args.to_vec(), metadata: None });
}

pub(crate) fn control_seeds() -> Vec<Vec<u8>> {
    super::control::encoded()
}

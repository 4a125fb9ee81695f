//! The frame: what travels on a link once TLS is up.
//!
//! Owns the byte layout and its limits; never looks into a body. In: kinds, ids and bodies; out: bytes,
//! and back. Bodies are slices of the read buffer, not copies.
//!
//! ```text
//! 0          4         5      6                    14
//! | len u32  | version | kind | id u64 (some kinds) | body |
//!            └──────────── len bytes, little endian ───────┘
//! ```

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Largest body of one frame; larger payloads are cut into several by their owner.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Largest head of a frame: length, version, kind, id.
pub(crate) const HEAD_BYTES_MAX: usize = 4 + 2 + 8;
/// Version of this layout, first byte after the length.
const VERSION: u8 = 1;

/// What a frame is. Grows at the end only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Dialer → door: who I am, which lane.
    Hello = 1,
    /// Door → dialer: come in, this is who I am.
    Welcome = 2,
    /// Door → dialer: no, and why.
    Refuse = 3,
    /// I live.
    Ping = 4,
    /// One-way payload.
    Data = 5,
    /// A request that wants one answer; has an id, as all that follow.
    Request = 6,
    /// The answer to the request of that id.
    Response = 7,
    /// The request of that id gets no answer; the body is one byte, why.
    Failed = 8,
    /// A request that wants a stream of items.
    Open = 9,
    /// An item of the stream of that id.
    Item = 10,
    /// The last word of a stream, and why it ended.
    End = 11,
    /// The asker wants no more of the stream.
    Cancel = 12,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Hello,
        Self::Welcome,
        Self::Refuse,
        Self::Ping,
        Self::Data,
        Self::Request,
        Self::Response,
        Self::Failed,
        Self::Open,
        Self::Item,
        Self::End,
        Self::Cancel,
    ];

    fn from_wire(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    fn has_id(self) -> bool {
        self as u8 >= Self::Request as u8
    }
}

/// A decoded frame. `id` is 0 for kinds without one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) body: Bytes,
}

/// Why bytes are not a frame; the connection they came on is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is above the limit.
    #[error("frame of {0} bytes is above the limit of {1}")]
    TooLarge(usize, usize),
    /// The length is below that of an empty frame of its kind.
    #[error("frame of {0} bytes is shorter than its head")]
    Short(usize),
    /// Another layout version.
    #[error("frame version {0} is not known here: run the same release on both sides")]
    Version(u8),
    /// A kind from the future, or noise.
    #[error("frame kind {0} is not known here: run the same release on both sides")]
    Kind(u8),
    /// A known kind on a lane or in a phase where it has no meaning.
    #[error("frame kind {0} has no place here")]
    Unexpected(u8),
    /// A stream under the id of one that is open.
    #[error("stream {0} is open already")]
    OpenAlready(u64),
}

impl FrameError {
    pub(crate) fn unexpected(kind: Kind) -> Self {
        Self::Unexpected(kind as u8)
    }
}

/// Bytes the frame takes on the wire.
pub(crate) fn wire_bytes(kind: Kind, body: usize) -> usize {
    6 + if kind.has_id() { 8 } else { 0 } + body
}

/// Appends a frame. The caller has checked the body against [`FRAME_BYTES_MAX`].
pub(crate) fn encode(out: &mut Vec<u8>, kind: Kind, id: u64, body: &[u8]) {
    assert!(body.len() <= FRAME_BYTES_MAX, "a frame is never larger than its limit");
    out.reserve(HEAD_BYTES_MAX + body.len());
    out.extend_from_slice(&((wire_bytes(kind, body.len()) - 4) as u32).to_le_bytes());
    out.extend_from_slice(&[VERSION, kind as u8]);
    if kind.has_id() {
        out.extend_from_slice(&id.to_le_bytes());
    }
    out.extend_from_slice(body);
}

/// Checks the six first bytes: (kind, bytes after the length).
fn head(bytes: [u8; 6], body_max: usize) -> Result<(Kind, usize), FrameError> {
    let [a, b, c, d, version, kind] = bytes;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let kind = Kind::from_wire(kind).ok_or(FrameError::Kind(kind))?;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let empty = wire_bytes(kind, 0) - 4;
    match len.checked_sub(empty) {
        None => Err(FrameError::Short(len)),
        Some(body) if body > body_max => Err(FrameError::TooLarge(body, body_max)),
        Some(_) => Ok((kind, len)),
    }
}

/// Takes the next frame off the buffer; `None` when it is not complete yet, with room reserved for it.
pub(crate) fn decode(buf: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(first) = buf.first_chunk::<6>() else {
        return Ok(None);
    };
    let (kind, len) = head(*first, FRAME_BYTES_MAX)?;
    if buf.len() < 4 + len {
        buf.reserve(4 + len - buf.len());
        return Ok(None);
    }
    let mut body = buf.split_to(4 + len);
    body.advance(6);
    let id = if kind.has_id() { body.get_u64_le() } else { 0 };
    Ok(Some(Frame { kind, id, body: body.freeze() }))
}

/// Reads exactly one frame and not a byte more; for the handshake.
pub(crate) async fn read_one(
    io: &mut (impl tokio::io::AsyncRead + Unpin),
    body_max: usize,
) -> std::io::Result<Frame> {
    let noise = |e: FrameError| std::io::Error::new(std::io::ErrorKind::InvalidData, e);
    let mut first = [0; 6];
    io.read_exact(&mut first).await?;
    let (kind, len) = head(first, body_max).map_err(noise)?;
    let mut rest = vec![0; len - 2];
    io.read_exact(&mut rest).await?;
    let mut body = Bytes::from(rest);
    let id = if kind.has_id() { body.get_u64_le() } else { 0 };
    Ok(Frame { kind, id, body })
}

/// Writes one frame and flushes; for the handshake.
pub(crate) async fn write_one(
    io: &mut (impl tokio::io::AsyncWrite + Unpin),
    kind: Kind,
    body: &[u8],
) -> std::io::Result<()> {
    let mut out = Vec::new();
    encode(&mut out, kind, 0, body);
    io.write_all(&out).await?;
    io.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_every_kind_are_frozen() {
        for kind in Kind::ALL {
            let mut out = Vec::new();
            encode(&mut out, kind, 0x0102, b"xy");
            let want: &[u8] = if (kind as u8) < 6 {
                &[4, 0, 0, 0, 1, kind as u8, b'x', b'y']
            } else {
                &[12, 0, 0, 0, 1, kind as u8, 2, 1, 0, 0, 0, 0, 0, 0, b'x', b'y']
            };
            assert_eq!(out, want);
            let mut buf = BytesMut::from(&out[..]);
            let frame = decode(&mut buf).unwrap().unwrap();
            assert_eq!((frame.kind, &frame.body[..], buf.len()), (kind, &b"xy"[..], 0));
            assert_eq!(Kind::from_wire(kind as u8), Some(kind));
        }
        assert_eq!((Kind::from_wire(0), Kind::from_wire(13)), (None, None));
    }

    #[test]
    fn a_frame_in_pieces_waits_for_its_last_byte() {
        let mut out = Vec::new();
        encode(&mut out, Kind::Request, 7, b"hello");
        let mut buf = BytesMut::new();
        for byte in &out[..out.len() - 1] {
            buf.extend_from_slice(&[*byte]);
            assert_eq!(decode(&mut buf).unwrap(), None);
        }
        buf.extend_from_slice(&out[out.len() - 1..]);
        assert_eq!(decode(&mut buf).unwrap().unwrap().id, 7);
    }

    #[test]
    fn noise_is_refused_from_its_head() {
        let refused = |bytes: &[u8]| decode(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(refused(b"GET / HTTP/1.1"), FrameError::Version(b'/'));
        assert_eq!(refused(&[9, 0, 0, 0, 1, 99]), FrameError::Kind(99));
        assert_eq!(refused(&[9, 0, 0, 0, 1, 6]), FrameError::Short(9));
        assert_eq!(refused(&[0, 0, 0, 1, 1, 5]), FrameError::TooLarge((1 << 24) - 2, FRAME_BYTES_MAX));
    }
}

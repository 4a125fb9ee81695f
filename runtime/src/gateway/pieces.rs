//! Large answers, handed out piece by piece.
//!
//! Owns nothing but the cutting. hyper takes a body that is one piece into its own buffer whole, and may
//! copy it; of one in pieces it takes what its buffer has room for. So an answer that its client does not
//! take costs one copy of a file for all, and a call keeps its place until its answer is taken.

use std::borrow::Cow;
use std::convert::Infallible;

use axum::body::{Body, to_bytes};
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;

/// Bytes of a piece. An answer up to this size is one.
const PIECE_BYTES: usize = 16 * 1024;

/// A body of these bytes; those of the program itself are not copied. It comes with its `Content-Length`.
pub(super) fn file(bytes: Cow<'static, [u8]>) -> Response {
    cut(
        Response::new(match bytes {
            Cow::Borrowed(bytes) => Bytes::from_static(bytes),
            Cow::Owned(bytes) => Bytes::from(bytes),
        }),
        (),
    )
}

/// The answer, which keeps `held` until its last piece is on its way.
pub(super) async fn holding(response: Response, held: impl Send + 'static) -> Response {
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default(); // is in memory already
    cut(Response::from_parts(parts, bytes), held)
}

fn cut(response: Response<Bytes>, held: impl Send + 'static) -> Response {
    let (mut parts, bytes) = response.into_parts();
    parts.headers.insert(CONTENT_LENGTH, bytes.len().into());
    if bytes.len() <= PIECE_BYTES {
        return Response::from_parts(parts, Body::from(bytes));
    }
    let pieces = stream::unfold((bytes, held), |(mut rest, held)| async move {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (rest, held)))
    });
    Response::from_parts(parts, Body::from_stream(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_make_up_the_whole_and_hold_until_the_last() {
        let (held, holds) =
            (std::sync::Arc::new(()), |held: &std::sync::Arc<()>| std::sync::Arc::strong_count(held) > 1);
        let text: Vec<u8> = (0..PIECE_BYTES * 2 + 1).map(|n| n as u8).collect();
        let response = holding(Response::new(Body::from(text.clone())), held.clone()).await;
        assert_eq!(response.headers()[CONTENT_LENGTH], text.len().to_string());
        assert!(holds(&held));
        assert_eq!(to_bytes(response.into_body(), usize::MAX).await.unwrap(), text);
        assert!(!holds(&held));
        let small = holding(Response::new(Body::from("x")), held.clone()).await;
        assert!(!holds(&held));
        assert_eq!(to_bytes(small.into_body(), usize::MAX).await.unwrap(), "x");
    }
}

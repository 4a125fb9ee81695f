//! Calls of stateless workers.
//!
//! A stateless kind has no state and no log: any node runs its calls, in a pool of workers of its own. So a
//! call of one is not a [`Call`]: it can be awaited, but neither sent nor scheduled, which promise that
//! it is applied exactly once.

use std::future::IntoFuture;
use std::time::Duration;

use crate::actor::BoxFuture;
use crate::call::{Call, Detailed, Failure};
use crate::data::Data;
use crate::options::Pool;

/// The page for users, compiled as a test of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../../docs/stateless.md")]
pub struct Page;

/// Key of calls for which it does not matter which worker takes them.
pub(crate) const ANY_KEY: &str = "any";

/// A call of a stateless worker that has not been made: await it.
#[must_use = "a call does nothing until it is awaited"]
pub struct PoolCall<T, X> {
    pub(crate) call: Call<T, X>,
    pub(crate) pool: Pool,
}

impl<T: Data, X: Failure> PoolCall<T, X> {
    /// Another time-out for this call. When it has passed, the work ends where it waits.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { call: self.call.timeout(timeout), pool: self.pool }
    }

    /// Makes the call and tells how it went besides the answer.
    pub async fn detailed(self) -> Detailed<T, X> {
        self.call.made(Some(self.pool)).await
    }
}

impl<T: Data, X: Failure> IntoFuture for PoolCall<T, X> {
    type Output = Result<T, X>;
    type IntoFuture = BoxFuture<'static, Result<T, X>>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.detailed().await.result })
    }
}

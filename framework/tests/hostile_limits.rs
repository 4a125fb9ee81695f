//! Arguments that blow up and keys without end, through [`TestApp`].

#![expect(missing_docs, reason = "actors of this test")]

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use perennial::actor::{Answer, Args};
use perennial::call::Outbound;
use perennial::core::id::{RequestId, SessionId};
use perennial::limits::{NEW_ACTORS_BURST_MAX, NEW_ACTORS_PER_SECOND_MAX};
use perennial::prelude::*;
use perennial::schema::DEPTH_MAX;
use perennial::testing::TestApp;
use perennial::{Fault, Format};

/// A type that contains itself.
#[data]
#[derive(Default)]
pub struct Nest {
    inner: Option<Box<Nest>>,
}

#[data]
#[derive(Default)]
pub struct Shelf {
    nest: Nest,
    count: u64,
}

#[actor]
impl Shelf {
    pub fn put(&mut self, nest: Nest) {
        self.nest = nest;
    }

    /// Each call makes the state one level deeper.
    pub fn wrap(&mut self) {
        let inner = std::mem::take(&mut self.nest);
        self.nest = Nest { inner: Some(Box::new(inner)) };
    }

    pub fn units(&mut self, units: Vec<()>) -> u64 {
        units.len() as u64
    }

    pub fn count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    pub fn look(&self) -> u64 {
        self.count
    }
}

async fn app() -> TestApp {
    TestApp::new(App::new("shelves").actor::<Shelf>()).await
}

async fn raw(app: &TestApp, seq: u64, method: &str, args: Vec<u8>) -> Answer {
    let call = Outbound {
        target: "Shelf/a".parse().unwrap(),
        method: method.to_owned(),
        args: Args { format: Format::Postcard, bytes: args.into() },
        request: Some(RequestId { session: SessionId(5), seq }),
        keyed: false,
        read_only: false,
        stale: None,
        path: Vec::new(),
        deadline: tokio::time::Instant::now().into_std() + Duration::from_secs(10),
    };
    app.caller().call(call).await.answer
}

fn nested(levels: usize) -> Vec<u8> {
    let mut bytes = vec![1; levels];
    bytes.push(0);
    bytes
}

#[tokio::test(start_paused = true)]
async fn arguments_that_nest_without_end_are_refused_and_the_node_lives() {
    let app = app().await;
    for levels in [DEPTH_MAX, 100_000, 900_000] {
        let refused = raw(&app, levels as u64, "put", nested(levels)).await;
        let Answer::Fault(Fault::BadArguments { problem, .. }) = refused else { panic!("{refused:?}") };
        assert!(problem.contains("nested deeper"), "{problem}");
    }
    assert_eq!(raw(&app, 1, "put", nested(40)).await, Answer::Ok(Bytes::new()));
}

#[tokio::test(start_paused = true)]
async fn sequences_of_nothing_are_as_long_as_the_limit_and_no_longer() {
    let app = app().await;
    let length = |n: u64| postcard::to_stdvec(&n).unwrap();
    for (seq, n) in [(1, u64::MAX), (2, 1 << 40), (3, 4097)] {
        let refused = raw(&app, seq, "units", length(n)).await;
        assert!(matches!(refused, Answer::Fault(Fault::BadArguments { .. })), "{n}: {refused:?}");
    }
    assert_eq!(raw(&app, 4, "units", length(4096)).await, Answer::Ok(length(4096).into()));
}

#[tokio::test(start_paused = true)]
async fn a_state_that_could_not_be_read_back_is_not_kept() {
    let app = app().await;
    let shelf = app.get::<Shelf>("deep");
    let mut levels = 0;
    let refused = loop {
        match shelf.wrap().await {
            Ok(()) => levels += 1,
            Err(fault) => break fault,
        }
        assert!(levels <= DEPTH_MAX, "the state nests without end");
    };
    assert!(
        matches!(&refused, Fault::Unreadable { why, .. } if why.contains("nested deeper")),
        "{refused:?}"
    );
    assert_eq!(shelf.count().await, Ok(1), "the actor goes on from the state before");
    assert!(levels > 32);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_is_refused_and_actors_that_exist_are_served() {
    let app = app().await;
    let known = app.get::<Shelf>("known");
    assert_eq!(known.count().await, Ok(1));
    let flood = async |from: u64, count: u64| {
        let calls = futures_util::stream::iter(from..from + count).map(|n| {
            let shelf = app.get::<Shelf>(&format!("k{n}"));
            async move { shelf.look().await }
        });
        calls.buffer_unordered(256).collect::<Vec<_>>().await
    };
    let all = flood(0, NEW_ACTORS_BURST_MAX + 1000).await;
    let refused: Vec<_> = all.iter().filter_map(|answer| answer.as_ref().err()).collect();
    // The call before took one; the paused clock adds none while calls do not wait.
    assert!(!refused.is_empty());
    for fault in refused {
        assert!(matches!(fault, Fault::Overloaded { limit, .. } if *limit == NEW_ACTORS_PER_SECOND_MAX));
        assert_eq!((fault.http_status(), fault.retryable()), (429, true));
    }
    assert_eq!(known.count().await, Ok(2), "an actor that exists takes no new place");
    assert_eq!(app.get::<Shelf>("k1").look().await, Ok(0), "nor does one in memory");
    app.advance(Duration::from_secs(2)).await;
    assert!(flood(1_000_000, 100).await.iter().all(Result::is_ok), "the allowance comes back");
}

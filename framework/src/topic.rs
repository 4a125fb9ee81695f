//! Topics: what many publish and many follow.
//!
//! Owns one actor type for each type of event, [`Topic<E>`]; a topic's key is its name. A topic is an actor:
//! what is published through it is committed, ordered and numbered by its log, and followed with `events()`
//! from any node or over HTTP. However many follow it on a node, its events come there once.
//!
//! ```
//! use futures_util::StreamExt;
//! use perennial::prelude::*;
//! use perennial::testing::TestApp;
//! use perennial::topic::{Topic, TopicEvent};
//!
//! /// A price that changed.
//! #[data]
//! #[derive(PartialEq)]
//! pub struct Price {
//!     pub product: String,
//!     pub cents: u64,
//! }
//!
//! impl TopicEvent for Price {
//!     const TOPIC: &'static str = "Prices";
//! }
//!
//! /// Something that is sold; its key is its name.
//! #[data]
//! #[derive(Default)]
//! pub struct Product {
//!     cents: u64,
//! }
//!
//! #[actor]
//! impl Product {
//!     /// Sets the price, and tells all who follow prices, once that is committed.
//!     pub fn set_price(&mut self, ctx: &mut Ctx<Self>, cents: u64) {
//!         self.cents = cents;
//!         let price = Price { product: ctx.key().to_owned(), cents };
//!         ctx.send(ctx.get::<Topic<Price>>("all").publish(price));
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let app = TestApp::new(App::new("shop").actor::<Product>().actor::<Topic<Price>>()).await;
//! app.get::<Product>("tea").set_price(250).await.unwrap();
//! app.get::<Product>("cake").set_price(400).await.unwrap();
//! let mut prices = app.get::<Topic<Price>>("all").events_from(perennial::EventsFrom::Start);
//! let mut seen = Vec::new();
//! for _ in 0..2 {
//!     let (id, price) = prices.next().await.unwrap().unwrap();
//!     println!("{id}: {} costs {}", price.product, price.cents);
//!     seen.push(price.cents);
//! }
//! seen.sort(); // two publishers: each keeps its order, between them there is none
//! assert_eq!(seen, [250, 400]);
//! # }
//! ```

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::actor::{Actor, Answer, Args, Method, Param, Retention, Run};
use crate::call::{ActorHandle, ActorId, Call, Events, EventsFrom};
use crate::ctx::Ctx;
use crate::data::Data;
use crate::error::Fault;
use crate::schema::{Field, Shape, Type, Types};

/// What is published through a topic.
pub trait TopicEvent: Data {
    /// Kind of the topics that carry it, in ids, URLs and logs: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    const TOPIC: &'static str;
    /// Which events are kept for those who come back.
    const RETENTION: Retention = Retention::DEFAULT;
}

/// A topic for events of type `E`; see [the module](self).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Topic<E> {
    published: u64,
    #[serde(skip)]
    event: PhantomData<fn() -> E>,
}

impl<E> Default for Topic<E> {
    fn default() -> Self {
        Self { published: 0, event: PhantomData }
    }
}

impl<E: TopicEvent> Data for Topic<E> {
    fn schema(types: &mut Types) -> Type {
        types.named::<Self>("Topic", |types| {
            Shape::Struct(vec![Field { name: "published".to_owned(), ty: u64::schema(types) }])
        })
    }
}

/// Positions in [`Actor::METHODS`].
const PUBLISH: usize = 0;
const PUBLISH_ALL: usize = 1;

impl<E: TopicEvent> Actor for Topic<E> {
    const KIND: &'static str = E::TOPIC;
    type Event = E;
    const RETENTION: Retention = E::RETENTION;
    type Ref = TopicRef<E>;
    const METHODS: &'static [Method] = &[
        Method {
            name: "publish",
            write: true,
            asynchronous: false,
            stale_ms: 0,
            params: &[Param { name: "event", ty: E::TOPIC, schema: E::schema }],
            returns: "u64",
            returns_schema: u64::schema,
            doc: "Publishes an event; returns how many were published so far.",
        },
        Method {
            name: "publish_all",
            write: true,
            asynchronous: false,
            stale_ms: 0,
            params: &[Param { name: "events", ty: "Vec", schema: <Vec<E> as Data>::schema }],
            returns: "u64",
            returns_schema: u64::schema,
            doc: "Publishes events, all or none; returns how many were published so far.",
        },
        Method {
            name: "published",
            write: false,
            asynchronous: false,
            stale_ms: 0,
            params: &[],
            returns: "u64",
            returns_schema: u64::schema,
            doc: "How many events were published so far.",
        },
    ];

    fn make_ref(handle: ActorHandle) -> TopicRef<E> {
        TopicRef { handle, event: PhantomData }
    }

    fn read<'a>(&'a self, _: &'a Ctx<Self>, _: usize, args: Args) -> Run<'a> {
        Run::Done(Answer::of_value(args.format, self.published))
    }

    fn write<'a>(&'a mut self, ctx: &'a mut Ctx<Self>, method: usize, args: Args) -> Run<'a> {
        let format = args.format;
        let events = match method {
            PUBLISH => args.decode::<(E,)>(Self::KIND, &Self::METHODS[PUBLISH]).map(|(event,)| vec![event]),
            _ => args.decode::<(Vec<E>,)>(Self::KIND, &Self::METHODS[PUBLISH_ALL]).map(|(events,)| events),
        };
        let events = match events {
            Ok(events) => events,
            Err(fault) => return Run::Done(Answer::Fault(fault)),
        };
        self.published += events.len() as u64;
        events.into_iter().for_each(|event| ctx.publish(event));
        Run::Done(Answer::of_value(format, self.published))
    }
}

/// A reference to a topic.
pub struct TopicRef<E> {
    handle: ActorHandle,
    event: PhantomData<fn() -> E>,
}

impl<E> Clone for TopicRef<E> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), event: PhantomData }
    }
}

impl<E> std::fmt::Debug for TopicRef<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TopicRef").field(&self.handle).finish()
    }
}

impl<E: TopicEvent> TopicRef<E> {
    /// Publishes an event; gives how many were published so far.
    pub fn publish(&self, event: E) -> Call<u64, Fault> {
        self.handle.method("publish", &(event,))
    }

    /// Publishes events, all or none; gives how many were published so far.
    pub fn publish_all(&self, events: Vec<E>) -> Call<u64, Fault> {
        self.handle.method("publish_all", &(events,))
    }

    /// How many events were published so far.
    pub fn published(&self) -> Call<u64, Fault> {
        self.handle.method("published", &())
    }

    /// The events that are published from now on.
    pub fn events(&self) -> Events<E> {
        self.events_from(EventsFrom::Now)
    }

    /// The events from a chosen place on, to resume a stream.
    pub fn events_from(&self, from: EventsFrom) -> Events<E> {
        self.handle.events::<Topic<E>>(from)
    }

    /// The topic's id; a fault when its name is not valid.
    ///
    /// # Errors
    /// [`Fault::BadName`].
    pub fn id(&self) -> Result<&ActorId, &Fault> {
        self.handle.id()
    }
}

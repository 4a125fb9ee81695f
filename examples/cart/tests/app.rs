//! The shop's rules, in one process and in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::prelude::*;
use perennial::testing::TestApp;
use perennial_example_cart::{
    ABANDONED_AFTER, Account, Cancelled, Cart, CartError, CartEvent, DEPOT, Depot, Level, Line,
    OPENING_CREDIT, OPENING_STOCK, Order, PARCEL_PIECES_MAX, QTY_MAX, Stage, Statement, Stock, StockError,
    TICKET_VALID, register,
};

const STOCK: i64 = OPENING_STOCK as i64;

async fn shop() -> TestApp {
    TestApp::new(register(App::new("cart"))).await
}

/// Lets messages between actors arrive; then the article must stand as expected.
async fn comes_to(app: &TestApp, sku: &str, expected: Level) {
    app.settle().await;
    assert_eq!(app.get::<Stock>(sku).level().await, Ok(expected), "level of {sku}");
}

#[tokio::test(start_paused = true)]
async fn what_is_in_a_cart_is_held_by_the_shelf() {
    let app = shop().await;
    let cart = app.get::<Cart>("alice");
    assert_eq!(cart.add("tea".into(), 2, 250).await, Ok(2));
    assert_eq!(cart.add("pot".into(), 1, 350).await, Ok(3));
    assert_eq!(cart.total_cents().await, Ok(850));
    comes_to(&app, "tea", Level { available: STOCK - 2, held: 2, ..Level::default() }).await;
    comes_to(&app, "pot", Level { available: STOCK - 1, held: 1, ..Level::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_add_leaves_no_trace() {
    let app = shop().await;
    let cart = app.get::<Cart>("alice");
    let too_many = OPENING_STOCK + 1;
    let refused = CartError::OutOfStock { sku: "tea".into(), left: OPENING_STOCK };
    assert_eq!(cart.add("tea".into(), too_many, 250).await, Err(CallError::App(refused)));
    let refused = CartError::BadQuantity { max: QTY_MAX };
    assert_eq!(cart.add("tea".into(), 0, 250).await, Err(CallError::App(refused)));
    assert_eq!(cart.lines().await, Ok(BTreeMap::new()));
    comes_to(&app, "tea", Level { available: STOCK, ..Level::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn taking_out_gives_back() {
    let app = shop().await;
    let cart = app.get::<Cart>("alice");
    cart.add("tea".into(), 5, 250).await.unwrap();
    assert_eq!(cart.set_qty("tea".into(), 7).await, Ok(7));
    comes_to(&app, "tea", Level { available: STOCK - 7, held: 7, ..Level::default() }).await;
    assert_eq!(cart.set_qty("tea".into(), 3).await, Ok(3));
    comes_to(&app, "tea", Level { available: STOCK - 3, held: 3, ..Level::default() }).await;
    assert_eq!(cart.remove("tea".into()).await, Ok(0));
    comes_to(&app, "tea", Level { available: STOCK, ..Level::default() }).await;
    let refused = CartError::NotInCart { sku: "tea".into() };
    assert_eq!(cart.remove("tea".into()).await, Err(CallError::App(refused)));
}

#[tokio::test(start_paused = true)]
async fn a_checkout_sells_and_writes_an_order() {
    let app = shop().await;
    let cart = app.get::<Cart>("alice");
    assert_eq!(cart.checkout().await, Err(CallError::App(CartError::Empty)));
    cart.add("tea".into(), 2, 250).await.unwrap();
    assert_eq!(cart.checkout().await, Ok("alice-1".to_owned()));
    assert_eq!((cart.count().await, cart.orders().await), (Ok(0), Ok(1)));
    comes_to(&app, "tea", Level { available: STOCK - 2, sold: 2, ..Level::default() }).await;
    let receipt = app.get::<Order>("alice-1").receipt().await.unwrap().expect("the order was placed");
    assert_eq!((receipt.cart.as_str(), receipt.cents, receipt.stage), ("alice", 500, Stage::Shipped));
    let statement = app.get::<Account>("alice").statement().await;
    assert_eq!(statement, Ok(Statement { credit: OPENING_CREDIT - 500, spent: 500 }));
    assert_eq!(app.get::<Depot>(DEPOT).parcels().await, Ok(1));
    assert_eq!(receipt.lines, BTreeMap::from([("tea".to_owned(), Line { qty: 2, cents: 250 })]));
}

#[tokio::test(start_paused = true)]
async fn an_order_that_cannot_be_paid_gives_its_goods_back() {
    let app = shop().await;
    let cart = app.get::<Cart>("alice");
    cart.add("tea".into(), 2, OPENING_CREDIT).await.unwrap();
    cart.checkout().await.unwrap();
    comes_to(&app, "tea", Level { available: STOCK, ..Level::default() }).await;
    let receipt = app.get::<Order>("alice-1").receipt().await.unwrap().unwrap();
    assert_eq!(receipt.stage, Stage::Cancelled(Cancelled::NoCredit));
    let account = app.get::<Account>("alice");
    assert_eq!(account.statement().await, Ok(Statement { credit: OPENING_CREDIT, spent: 0 }));
    // With enough money the next one goes through.
    account.deposit(OPENING_CREDIT).await.unwrap();
    cart.add("tea".into(), 2, OPENING_CREDIT).await.unwrap();
    cart.checkout().await.unwrap();
    comes_to(&app, "tea", Level { available: STOCK - 2, sold: 2, ..Level::default() }).await;
    assert_eq!(account.statement().await, Ok(Statement { credit: 0, spent: 2 * OPENING_CREDIT }));
}

#[tokio::test(start_paused = true)]
async fn an_order_that_cannot_be_shipped_is_refunded_and_gives_its_goods_back() {
    let app = shop().await;
    let cart = app.get::<Cart>("alice");
    cart.add("tea".into(), PARCEL_PIECES_MAX, 250).await.unwrap();
    cart.add("pot".into(), 1, 350).await.unwrap();
    cart.checkout().await.unwrap();
    comes_to(&app, "tea", Level { available: STOCK, ..Level::default() }).await;
    comes_to(&app, "pot", Level { available: STOCK, ..Level::default() }).await;
    let receipt = app.get::<Order>("alice-1").receipt().await.unwrap().unwrap();
    assert_eq!(receipt.stage, Stage::Cancelled(Cancelled::TooLarge));
    let statement = app.get::<Account>("alice").statement().await;
    assert_eq!(statement, Ok(Statement { credit: OPENING_CREDIT, spent: 0 }));
    assert_eq!(app.get::<Depot>(DEPOT).parcels().await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_cart_gives_its_goods_back() {
    let app = shop().await;
    let cart = app.get::<Cart>("alice");
    cart.add("tea".into(), 2, 250).await.unwrap();
    app.advance(ABANDONED_AFTER / 2).await;
    cart.add("tea".into(), 1, 250).await.unwrap();
    app.advance(ABANDONED_AFTER / 2 + Duration::from_secs(1)).await;
    assert_eq!(cart.count().await, Ok(3), "a change starts the hour anew");
    app.advance(ABANDONED_AFTER / 2).await;
    comes_to(&app, "tea", Level { available: STOCK, ..Level::default() }).await;
    assert_eq!(cart.count().await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn goods_that_nobody_confirms_go_back_on_the_shelf() {
    let app = shop().await;
    let stock = app.get::<Stock>("tea");
    let ticket = stock.reserve(4).await.unwrap();
    assert_eq!(stock.available().await, Ok(STOCK - 4));
    app.advance(TICKET_VALID + Duration::from_secs(1)).await;
    comes_to(&app, "tea", Level { available: STOCK, ..Level::default() }).await;
    // A late confirmation is honoured: the customer has seen the goods in the cart.
    stock.confirm(ticket, 4).await.unwrap();
    comes_to(&app, "tea", Level { available: STOCK - 4, held: 4, ..Level::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_shelf_gives_back_only_what_carts_hold() {
    let app = shop().await;
    let stock = app.get::<Stock>("tea");
    assert_eq!(stock.release(1).await, Err(CallError::App(StockError::NotHeld { held: 0 })));
    assert_eq!(stock.sell(1).await, Err(CallError::App(StockError::NotHeld { held: 0 })));
    assert_eq!(stock.restock(5).await, Ok(STOCK + 5));
}

#[tokio::test(start_paused = true)]
async fn followers_hear_of_changes_and_orders() {
    use futures_util::StreamExt;
    let app = shop().await;
    let cart = app.get::<Cart>("alice");
    let mut events = cart.events_from(perennial::EventsFrom::Start);
    cart.add("tea".into(), 2, 250).await.unwrap();
    cart.checkout().await.unwrap();
    let (first, event) = events.next().await.unwrap().unwrap();
    assert_eq!(event, CartEvent::Changed { items: 2, cents: 500 });
    let (second, event) = events.next().await.unwrap().unwrap();
    assert_eq!(event, CartEvent::Ordered { order: "alice-1".into(), cents: 500 });
    assert!(first < second);
}

//! The shop on three nodes that are killed and cut off: nothing is lost, nothing is done twice.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use perennial::prelude::*;
use perennial::testing::TestCluster;
use perennial_example_cart::{
    ABANDONED_AFTER, Account, Cancelled, Cart, CartError, Level, OPENING_CREDIT, OPENING_STOCK, Order,
    PARCEL_PIECES_MAX, Stage, Statement, Stock, register,
};

const STOCK: i64 = OPENING_STOCK as i64;
/// For calls over the death of a node on a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(50);

fn shop() -> App {
    register(App::new("cart"))
}

#[tokio::test]
async fn purchases_survive_the_nodes_that_have_them() {
    const CUSTOMERS: usize = 15;
    const PIECES: u32 = 5;
    let cluster = TestCluster::start(3, shop()).await;
    let carts = || (0..CUSTOMERS).map(|n| cluster.get::<Cart>(format!("customer {n}")));

    // Everybody takes piece after piece; meanwhile the node dies that has somebody's cart, and when it is back
    // the one with the shelf.
    let (added, mut adds) = tokio::sync::mpsc::unbounded_channel();
    let shopping = join_all(carts().map(async |cart| {
        for n in 1..=PIECES {
            assert_eq!(cart.add("tea".into(), 1, 250).timeout(LONG).await, Ok(n));
            added.send(()).expect("the other half of the test listens");
        }
    }));
    let faults = async {
        adds.recv_many(&mut Vec::new(), 10).await;
        let owner = cluster.owner::<Cart>("customer 7").await;
        cluster.kill(owner);
        cluster.restart(owner).await;
        adds.recv_many(&mut Vec::new(), 10).await;
        cluster.cut_power(cluster.owner::<Stock>("tea").await);
        adds
    };
    let (_, _adds) = tokio::join!(shopping, faults);
    cluster.restart_all().await;
    cluster.settle().await; // every confirmation has reached the shelf
    let taken = CUSTOMERS as u64 * u64::from(PIECES);
    let level = cluster.get::<Stock>("tea").level().timeout(LONG).await;
    assert_eq!(level, Ok(Level { available: STOCK - taken as i64, held: taken, ..Level::default() }));

    // Everybody buys; with the first order the shelf's node dies again.
    let mut orders: FuturesUnordered<_> =
        carts().map(|cart| cart.checkout().timeout(LONG).into_future()).collect();
    let mut done = 0;
    while let Some(ordered) = orders.next().await {
        assert!(ordered.is_ok_and(|order| order.ends_with("-1")), "the first and only order of a cart");
        done += 1;
        if done == 1 {
            cluster.kill(cluster.owner::<Stock>("tea").await);
        }
    }
    cluster.settle().await;
    let level = cluster.get::<Stock>("tea").level().timeout(LONG).await;
    assert_eq!(level, Ok(Level { available: STOCK - taken as i64, sold: taken, ..Level::default() }));
    for n in 0..CUSTOMERS {
        let order = cluster.get::<Order>(format!("customer {n}-1"));
        let receipt = order.receipt().timeout(LONG).await.unwrap().expect("the order was placed");
        assert_eq!(receipt.cents, 250 * u64::from(PIECES));
    }
}

#[tokio::test]
async fn an_order_comes_to_its_end_whichever_node_dies_on_the_way() {
    const CUSTOMERS: usize = 12;
    let cluster = TestCluster::start(3, shop()).await;
    let key = |n: usize| format!("customer {n}");
    cluster.get::<Stock>("tea").restock(1000).await.unwrap();
    // A third cannot pay, a third orders too much for a parcel, a third gets what it wants.
    let pieces = |n: usize| if n % 3 == 1 { PARCEL_PIECES_MAX + 1 } else { 2 };
    let cents = |n: usize| if n.is_multiple_of(3) { OPENING_CREDIT } else { 100 };
    for n in 0..CUSTOMERS {
        let cart = cluster.get::<Cart>(key(n));
        cart.add("tea".into(), pieces(n), cents(n)).timeout(LONG).await.unwrap();
    }
    for n in 0..CUSTOMERS {
        let order = cluster.get::<Cart>(key(n)).checkout().timeout(LONG).await.unwrap();
        let victim = match n % 4 {
            0 => Some(cluster.owner::<Order>(&order).await),
            2 => Some(cluster.owner::<Account>(key(n)).await),
            _ => None,
        };
        if let Some(victim) = victim {
            cluster.kill(victim);
            cluster.restart(victim).await;
        }
    }
    cluster.settle().await;
    let mut sold = 0;
    for n in 0..CUSTOMERS {
        let order = cluster.get::<Order>(format!("{}-1", key(n)));
        let receipt = order.receipt().timeout(LONG).await.unwrap().expect("the order was placed");
        let statement = cluster.get::<Account>(key(n)).statement().timeout(LONG).await.unwrap();
        let spent = match n % 3 {
            0 => {
                assert_eq!(receipt.stage, Stage::Cancelled(Cancelled::NoCredit), "customer {n}");
                0
            }
            1 => {
                assert_eq!(receipt.stage, Stage::Cancelled(Cancelled::TooLarge), "customer {n}");
                0
            }
            _ => {
                assert_eq!(receipt.stage, Stage::Shipped, "customer {n}");
                sold += 2;
                200
            }
        };
        assert_eq!(statement, Statement { credit: OPENING_CREDIT - spent, spent }, "customer {n}");
    }
    let level = cluster.get::<Stock>("tea").level().timeout(LONG).await;
    let all = STOCK + 1000;
    assert_eq!(level, Ok(Level { available: all - sold as i64, sold, ..Level::default() }));
}

#[tokio::test]
async fn a_node_that_is_cut_off_sells_nothing() {
    let cluster = TestCluster::start(3, shop()).await;
    cluster.get::<Cart>("alice").add("tea".into(), 2, 250).await.unwrap();

    let owner = cluster.owner::<Cart>("alice").await;
    let apart = cluster.pick(&cluster.others(&[owner]));
    let customer = cluster.client_on(&[apart]).await;
    cluster.isolate(apart);
    let refused = customer.get::<Cart>("alice").add("tea".into(), 5, 250).timeout(LONG).await;
    let Err(CallError::<CartError>::Fault(fault @ Fault::Unavailable { .. })) = refused else {
        panic!("a minority has answered: {refused:?}");
    };
    assert_eq!(fault.applied(), perennial::error::Applied::No);
    assert_eq!(cluster.get::<Cart>("alice").count().timeout(LONG).await, Ok(2), "the majority serves");

    cluster.heal().await;
    assert_eq!(customer.get::<Cart>("alice").add("tea".into(), 1, 250).timeout(LONG).await, Ok(3));
    cluster.settle().await;
    let level = cluster.get::<Stock>("tea").level().timeout(LONG).await;
    assert_eq!(level, Ok(Level { available: STOCK - 3, held: 3, ..Level::default() }));
}

#[tokio::test]
async fn an_abandoned_cart_gives_its_goods_back_though_its_node_is_gone() {
    let cluster = TestCluster::start(3, shop()).await;
    cluster.get::<Cart>("alice").add("tea".into(), 2, 250).await.unwrap();
    cluster.kill(cluster.owner::<Cart>("alice").await);
    cluster.advance(ABANDONED_AFTER).await;
    assert_eq!(cluster.get::<Cart>("alice").count().timeout(LONG).await, Ok(0));
    let level = cluster.get::<Stock>("tea").level().timeout(LONG).await;
    assert_eq!(level, Ok(Level { available: STOCK, ..Level::default() }));
}

//! The shop page in two real browsers that fill one cart, over the death of the node that serves one of
//! them.
//!
//! Needs `chromium` and `chromedriver` on the PATH and says loudly when it is skipped for want of them.

#[path = "../../web/browser.rs"]
mod browser;

use std::time::Duration;

use perennial_runtime::harness::{ClusterSpec, ProcessCluster};

use self::browser::{Browser, Driver, PATIENCE};

/// Pieces of tea in the cart as acknowledged; none while a change is under way.
const TEA: &str = "document.querySelector('#lines [data-sku=tea][data-pending=false] b')?.textContent";

#[tokio::test(flavor = "multi_thread")]
async fn two_browsers_fill_one_cart_when_a_node_dies() {
    if !browser::available("the shop page") {
        return;
    }
    let driver = Driver::start().await;
    let (one, two) = (driver.browser().await, driver.browser().await);
    // In a task of its own, so that a failed assertion does not leave browsers behind.
    let outcome = tokio::spawn(scenario(one.clone(), two.clone())).await;
    one.quit().await;
    two.quit().await;
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

async fn scenario(one: Browser, two: Browser) {
    let dir = tempfile::tempdir().unwrap();
    let spec = ClusterSpec::new(3, dir.path(), env!("CARGO_BIN_EXE_cart"));
    let mut cluster = ProcessCluster::start(spec).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    let http = cluster.http();
    for (browser, gateway) in [(&one, &http[0]), (&two, &http[1])] {
        let origin = if gateway.contains("://") { gateway.clone() } else { format!("http://{gateway}") };
        browser.open(&format!("{origin}/cart/#carol")).await;
        browser.until("document.getElementById('state')?.dataset.state === 'live'").await;
        browser.until("document.querySelector('#shelf .left')?.textContent.includes('100 left')").await;
    }
    add_tea(&one).await;
    one.until("document.getElementById('word').textContent.includes('answered by n')").await;
    both_show(&one, &two, 1).await;

    let served_by = one.text("document.getElementById('state').textContent").await;
    cluster.kill9(0).await;
    for _ in 0..3 {
        add_tea(&one).await;
        add_tea(&two).await;
    }
    both_show(&one, &two, 7).await;
    let served_by = serde_json::json!(served_by);
    one.until(&format!("document.getElementById('state').textContent !== {served_by}")).await;
    one.until("document.querySelector('#shelf .left').textContent.includes('93 left')").await;

    two.run("document.getElementById('checkout').click()").await;
    for browser in [&one, &two] {
        browser.until("document.querySelectorAll('#orders li').length === 1").await;
        browser.until("!document.getElementById('empty').hidden").await;
    }
    assert_eq!(
        one.text("document.getElementById('orders').textContent").await,
        two.text("document.getElementById('orders').textContent").await,
    );
    cluster.stop(Duration::from_secs(5)).await;
}

async fn add_tea(browser: &Browser) {
    browser.run("document.querySelector('#shelf li button').click()").await;
}

async fn both_show(one: &Browser, two: &Browser, pieces: usize) {
    for browser in [one, two] {
        browser.until(&format!("{TEA} === '{pieces}'")).await;
    }
}

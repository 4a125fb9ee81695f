//! The chat page in two real browsers, over the death of the node that serves one of them.
//!
//! Needs `chromium` and `chromedriver` on the PATH and says loudly when it is skipped for want of them.

#[path = "../../web/browser.rs"]
mod browser;

use std::path::Path;
use std::time::Duration;

use perennial_runtime::harness::{ClusterSpec, ProcessCluster};
use serde_json::json;

use self::browser::{Browser, Driver, PATIENCE};

const LIVE: &str = "document.getElementById('state').dataset.state === 'live'";
const TEXTS: &str = "[...document.querySelectorAll('#log .bubble')].map(e => e.textContent)";

#[tokio::test(flavor = "multi_thread")]
async fn two_browsers_miss_nothing_when_a_node_dies() {
    if !browser::available("the chat page") {
        return;
    }
    let driver = Driver::start().await;
    let (ann, bo) = (driver.browser().await, driver.browser().await);
    // In a task of its own, so that a failed assertion does not leave browsers behind.
    let outcome = tokio::spawn(scenario(ann.clone(), bo.clone())).await;
    ann.quit().await;
    bo.quit().await;
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

async fn scenario(ann: Browser, bo: Browser) {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = start_cluster(dir.path()).await;
    let http = cluster.http();
    enter(&ann, &http[0], "Ann").await;
    enter(&bo, &http[1], "Bo <b>").await;

    say(&ann, "hello").await;
    say(&bo, "<i>markup</i> stays text & so does <script>").await;
    both_show(&ann, &bo, 2).await;
    ann.until("document.querySelectorAll('#members li').length === 2").await;
    ann.until("document.querySelector('.mine .mark').textContent.includes('answered by n')").await;

    let served_by = ann.text("document.getElementById('state').textContent").await;
    cluster.kill9(0).await;
    for n in 0..3 {
        say(&ann, &format!("ann during the failover {n}")).await;
        say(&bo, &format!("bo during the failover {n}")).await;
    }
    both_show(&ann, &bo, 8).await;
    ann.until(&format!("{LIVE} && document.getElementById('state').textContent !== {}", json!(served_by)))
        .await;

    let texts = shown(&ann).await;
    assert_eq!(texts, shown(&bo).await, "both read the same room");
    for who in ["ann", "bo"] {
        let said: Vec<_> = texts.iter().filter(|text| text.starts_with(who)).collect();
        let expected: Vec<_> = (0..3).map(|n| format!("{who} during the failover {n}")).collect();
        assert_eq!(said, expected.iter().collect::<Vec<_>>(), "each message once, in the order of speaking");
    }
    assert!(texts.contains(&"<i>markup</i> stays text & so does <script>".to_owned()));

    ann.run("document.getElementById('leave').click()").await;
    bo.until("document.querySelectorAll('#members li').length === 1").await;
    cluster.stop(Duration::from_secs(5)).await;
}

/// Three nodes of this example, each with a gateway.
async fn start_cluster(dir: &Path) -> ProcessCluster {
    let spec = ClusterSpec::new(3, dir, env!("CARGO_BIN_EXE_chat"));
    let mut cluster = ProcessCluster::start(spec).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    cluster
}

async fn enter(browser: &Browser, gateway: &str, name: &str) {
    let origin = if gateway.contains("://") { gateway.to_owned() } else { format!("http://{gateway}") };
    browser.open(&format!("{origin}/chat/")).await;
    browser.until("document.getElementById('name')").await;
    let join = "document.querySelector('#join button').click()";
    browser.run(&format!("document.getElementById('name').value = {}; {join}", json!(name))).await;
    browser.until(&format!("!document.getElementById('inside').hidden && {LIVE}")).await;
}

async fn say(browser: &Browser, text: &str) {
    let send = "document.querySelector('#say button').click()";
    browser.run(&format!("document.getElementById('text').value = {}; {send}", json!(text))).await;
}

async fn both_show(ann: &Browser, bo: &Browser, messages: usize) {
    for browser in [ann, bo] {
        browser.until(&format!("{TEXTS}.length === {messages} && !document.querySelector('.pending')")).await;
    }
}

async fn shown(browser: &Browser) -> Vec<String> {
    serde_json::from_value(browser.run(&format!("return {TEXTS}")).await).unwrap()
}

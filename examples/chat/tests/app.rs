//! The room's rules, in one process and in virtual time.

use std::time::Duration;

use futures_util::StreamExt;
use perennial::EventsFrom;
use perennial::prelude::*;
use perennial::testing::TestApp;
use perennial_example_chat::{
    MEMBERS_MAX, NAME_CHARS_MAX, PAGE_MAX, PRESENT_FOR, Room, RoomError, RoomEvent, Said, TEXT_CHARS_MAX,
    register,
};

async fn chat() -> TestApp {
    TestApp::new(register(App::new("chat"))).await
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn members_speak_and_the_room_remembers() {
    let app = chat().await;
    let room = app.get::<Room>("lobby");
    assert_eq!(room.join("ann".into()).await, Ok(names(&["ann"])));
    assert_eq!(room.join("bo".into()).await, Ok(names(&["ann", "bo"])));
    assert_eq!(room.say("bo".into(), "hello".into()).await, Ok(3));
    assert_eq!(room.say("ann".into(), "hi".into()).await, Ok(4));
    let history = room.history(1).await.unwrap();
    assert_eq!((history.len(), history[0].who.as_str(), history[0].text.as_str()), (1, "ann", "hi"));
    room.leave("bo".into()).await.unwrap();
    assert_eq!(room.members().await, Ok(names(&["ann"])));
}

#[tokio::test(start_paused = true)]
async fn strangers_and_bad_words_are_refused() {
    let app = chat().await;
    let room = app.get::<Room>("lobby");
    let refused = Err(CallError::App(RoomError::NotMember));
    assert_eq!(room.say("ann".into(), "hello".into()).await, refused);
    let refused = Err(CallError::App(RoomError::BadName { max: NAME_CHARS_MAX as u32 }));
    assert_eq!(room.join(" ".into()).await, refused);
    assert_eq!(room.join("a".repeat(NAME_CHARS_MAX + 1)).await, refused);
    room.join("ann".into()).await.unwrap();
    let refused = Err(CallError::App(RoomError::BadText { max: TEXT_CHARS_MAX as u32 }));
    assert_eq!(room.say("ann".into(), "a".repeat(TEXT_CHARS_MAX + 1)).await, refused);
    assert_eq!(room.say("ann".into(), "ä".repeat(TEXT_CHARS_MAX)).await, Ok(2), "characters, not bytes");
}

#[tokio::test(start_paused = true)]
async fn a_full_room_still_knows_its_members() {
    let app = chat().await;
    let room = app.get::<Room>("lobby");
    for n in 0..MEMBERS_MAX {
        room.join(format!("m{n}")).await.unwrap();
    }
    let refused = Err(CallError::App(RoomError::Full { max: MEMBERS_MAX as u32 }));
    assert_eq!(room.join("late".into()).await, refused);
    assert!(room.join("m0".into()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_room_remembers_everything_page_by_page() {
    let app = chat().await;
    let room = app.get::<Room>("lobby");
    room.join("ann".into()).await.unwrap();
    let all: Vec<_> = (0..2 * PAGE_MAX + 5).map(|n| n.to_string()).collect();
    for text in &all {
        room.say("ann".into(), text.clone()).await.unwrap();
    }
    let texts = |messages: &[Said]| messages.iter().map(|said| said.text.clone()).collect::<Vec<_>>();
    let history = room.history(u32::MAX).await.unwrap();
    assert_eq!(texts(&history), all[all.len() - PAGE_MAX as usize..]);
    let mut found = Vec::new();
    let mut before = u64::MAX;
    while before > 0 {
        let page = room.page(before, u32::MAX).await.unwrap();
        found = [texts(&page.messages), found].concat();
        before = page.first;
    }
    assert_eq!(found, all);
    assert_eq!(
        room.page(7, 2).await.map(|page| (page.first, texts(&page.messages))),
        Ok((5, all[5..7].to_vec()))
    );
}

#[tokio::test(start_paused = true)]
async fn the_silent_leave_and_the_speaking_stay() {
    let app = chat().await;
    let room = app.get::<Room>("lobby");
    room.join("ann".into()).await.unwrap();
    room.join("bo".into()).await.unwrap();
    app.advance(PRESENT_FOR / 2).await;
    room.say("ann".into(), "still here".into()).await.unwrap();
    app.advance(PRESENT_FOR / 2 + Duration::from_secs(1)).await;
    assert_eq!(room.members().await, Ok(names(&["ann"])));
}

#[tokio::test(start_paused = true)]
async fn followers_get_everything_in_order_and_resume() {
    let app = chat().await;
    let room = app.get::<Room>("lobby");
    let mut events = room.events_from(EventsFrom::Start);
    room.join("ann".into()).await.unwrap();
    room.join("ann".into()).await.unwrap();
    room.say("ann".into(), "one".into()).await.unwrap();
    room.say("ann".into(), "two".into()).await.unwrap();
    room.leave("ann".into()).await.unwrap();

    let (joined, event) = events.next().await.unwrap().unwrap();
    assert!(matches!(event, RoomEvent::Joined { seq: 1, .. }), "joining twice is told once");
    let (one, event) = events.next().await.unwrap().unwrap();
    assert!(matches!(event, RoomEvent::Said(Said { seq: 2, ref text, .. }) if text == "one"));
    assert!(joined < one);
    drop(events);

    let mut events = room.events_from(EventsFrom::After(one));
    let (_, event) = events.next().await.unwrap().unwrap();
    assert!(matches!(event, RoomEvent::Said(Said { seq: 3, ref text, .. }) if text == "two"));
    let (_, event) = events.next().await.unwrap().unwrap();
    assert!(matches!(event, RoomEvent::Left { seq: 4, ref who, .. } if who == "ann"));
}

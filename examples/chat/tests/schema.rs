//! States that are stored, and messages on their way, can be read by the next version.

use perennial::App;
use perennial_example_chat::register;

#[test]
fn what_is_stored_can_still_be_read() {
    perennial::testing::schema_lock(&register(App::new("chat")), "schema.lock");
}

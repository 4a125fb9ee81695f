//! What users see when they get it wrong; `TRYBUILD=overwrite` regenerates the messages.

#[test]
fn mistakes_are_shown_on_the_users_own_line() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

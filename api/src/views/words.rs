//! Schemas of the stored words, made from the tables that the store uses, so that the document cannot drift.

use longhaul_shared::domain::{
    message::{Role, Speaker},
    run::Trigger,
    step::FinishReason,
    tool::{CallState, Effect},
    transition::{MessageStatus, Reason, RunStatus},
};
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

pub(crate) fn one_of(words: impl IntoIterator<Item = &'static str>) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build()
}

macro_rules! word_schemas {
    ($($name:ident: $type:ty),+ $(,)?) => {$(
        pub(crate) fn $name() -> Object {
            one_of(<$type>::ALL.iter().map(|word| word.as_str()))
        }
    )+};
}

word_schemas! {
    run_status: RunStatus,
    reason: Reason,
    trigger: Trigger,
    role: Role,
    speaker: Speaker,
    message_status: MessageStatus,
    finish_reason: FinishReason,
    effect: Effect,
    call_state: CallState,
}

-- With a user's message: the first turn that this one and its answer stand in for, up to their own. Null: none.
alter table messages add column replaces_turn bigint;

-- From schema 2 to 3: a row of the log holds several entries, and the newest ones may lie in the row of the instance.
-- `packed` is wasman_host.store.sqlite_log.packed, of one entry. It is cut as schema.sql is. The
-- table is written out: this stays as it is when schema.sql goes on.
alter table instance add column fresh blob not null default x'';
create table packed_log (
    number  integer primary key,
    run     integer not null,
    n       integer not null,
    last    integer not null,
    entries blob    not null,
    unique (run, last)
) strict;
insert into packed_log (number, run, n, last, entries) select number, run, n, n, packed(n, entry) from log;
drop table log;
alter table packed_log rename to log

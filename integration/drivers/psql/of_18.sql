-- What psql 18 and later have beyond of_17.sql: statements by name, pipelines (in which COPY ends it), lists by column.
-- What the endpoint refuses itself, as of names that it knows to be none or to be taken, has no place in PostgreSQL's source.
\set VERBOSITY default
\echo ==== statements by name
select id, word from matrix_psql where id = $1 \parse matrix_one
\bind_named matrix_one 2 \g
\bind_named matrix_one 3 \gx
\bind_named matrix_one 4 \gset
\echo :id :word
\bind_named matrix_one x \g
\bind_named matrix_one \g
\bind_named matrix_none 1 \g
select $1::int * 2 as twice \parse ''
\bind_named '' 21 \g
selec 1 \parse matrix_bad
\bind_named matrix_bad \g
select 2 as other \parse matrix_one
\bind_named matrix_one 5 \gdesc
select name, statement, parameter_types, from_sql from pg_prepared_statements where name like 'matrix%' order by 1;
prepare matrix_sql(int) as select $1 + 1 as next;
\bind_named matrix_sql 7 \g
execute matrix_one(5);
begin \bind \g
\bind_named matrix_one 6 \g
select 1 / $1::int as a \bind 0 \g
\bind_named matrix_one 6 \g
select 3 as three \parse matrix_failed
rollback \parse matrix_rollback
\bind_named matrix_rollback \g
rollback;
\set FETCH_COUNT 2
select id from matrix_psql where id < $1 order by id \parse matrix_some
\bind_named matrix_some 6 \g
\unset FETCH_COUNT
\close_prepared matrix_one
\bind_named matrix_one 2 \g
\close_prepared matrix_sql
execute matrix_sql(1);
\close_prepared matrix_none
\close_prepared
\parse
\bind_named
\t on
\bind_named matrix_some 3 \watch c=2 i=0.01
\t off
insert into matrix_psql values ($1) returning id \parse matrix_insert
\bind_named matrix_insert 600 \g
\bind_named matrix_insert 600 \g
alter table matrix_psql add column added int default 1;
\bind_named matrix_insert 601 \g
select * from matrix_psql where id = $1 \parse matrix_star
\bind_named matrix_star 600 \g
alter table matrix_psql drop column added;
\bind_named matrix_star 600 \g
discard all;
set search_path = matrix_psql, public;
\bind_named matrix_insert 602 \g
\echo ==== pipelines
create table matrix_pipe(a int primary key, s text);
\startpipeline
select $1 \bind 'one' \sendpipeline
\endpipeline
\startpipeline
\flush
select $1 \bind 'one' \sendpipeline
\flush
select $1, $2 \bind 'two' 'three' \sendpipeline
select 4 as four \bind \sendpipeline
\endpipeline
\startpipeline
select $1 \bind 'one' \sendpipeline
\syncpipeline
\syncpipeline
select $1, $2 \bind 'two' 'three' \sendpipeline
\syncpipeline
select $1 \bind 'four' \sendpipeline
\echo :PIPELINE_COMMAND_COUNT :PIPELINE_SYNC_COUNT :PIPELINE_RESULT_COUNT
\endpipeline
\startpipeline
\startpipeline
select $1 \bind 'twice' \sendpipeline
\endpipeline
\startpipeline
insert into matrix_pipe values ($1) \bind 1 \sendpipeline
begin \bind \sendpipeline
insert into matrix_pipe values ($1) \bind 2 \sendpipeline
rollback \bind \sendpipeline
\endpipeline
select count(*) from matrix_pipe;
\startpipeline
begin \bind \sendpipeline
insert into matrix_pipe values ($1) \bind 1 \sendpipeline
rollback \bind \sendpipeline
begin \bind \sendpipeline
insert into matrix_pipe values ($1) \bind 1 \sendpipeline
commit \bind \sendpipeline
\endpipeline
select count(*) from matrix_pipe;
\startpipeline
insert into matrix_pipe values ($1) \bind 7 \sendpipeline
insert into matrix_pipe values ($1) \bind 7 \sendpipeline
insert into matrix_pipe values ($1) \bind 8 \sendpipeline
\syncpipeline
insert into matrix_pipe values ($1) \bind 9 \sendpipeline
\endpipeline
select a from matrix_pipe order by a;
\echo ---- names
\startpipeline
select $1 \parse ''
select $1, $2 \parse ''
select $2 \parse matrix_second
\bind_named '' 1 2 \sendpipeline
\bind_named matrix_second 1 2 \sendpipeline
\close_prepared matrix_second
\endpipeline
\bind_named matrix_second 1 2 \g
\startpipeline
select $1 \parse matrix_kept
\endpipeline
\bind_named matrix_kept kept \g
\startpipeline
\bind_named matrix_kept kept \sendpipeline
\close_prepared matrix_kept
\syncpipeline
\bind_named matrix_kept kept \sendpipeline
\endpipeline
\echo ---- results
\startpipeline
select $1 \bind 1 \sendpipeline
select $1 \bind 2 \sendpipeline
\flushrequest
\getresults
\endpipeline
\startpipeline
select $1 \bind 1 \sendpipeline
select $1 \bind 2 \sendpipeline
\syncpipeline
\getresults
\endpipeline
\startpipeline
\getresults
select $1 \bind 2 \sendpipeline
\getresults
\flushrequest
\endpipeline
\getresults
\startpipeline
select $1 \bind 1 \sendpipeline
\flushrequest
select $1 \bind 2 \sendpipeline
\getresults
\endpipeline
\startpipeline
\set FETCH_COUNT 10
select $1 \bind 1 \sendpipeline
\flushrequest
\getresults
select $1 \bind 2 \sendpipeline
\endpipeline
\unset FETCH_COUNT
\startpipeline
select $1 \bind 1 \sendpipeline
select $1 \bind 2 \sendpipeline
select $1 \bind 3 \sendpipeline
\syncpipeline
\echo :PIPELINE_SYNC_COUNT :PIPELINE_RESULT_COUNT
\getresults 1
\echo :PIPELINE_RESULT_COUNT
select $1 \bind 4 \sendpipeline
\getresults 3
\echo :PIPELINE_RESULT_COUNT
\endpipeline
\startpipeline
\syncpipeline
\syncpipeline
select $1 \bind 1 \sendpipeline
\flushrequest
\getresults 2
\getresults 1
\endpipeline
\startpipeline
select $1 \bind 1 \sendpipeline
select $1 \bind 2 \sendpipeline
\syncpipeline
\getresults 0
\getresults -1
\endpipeline
\getresults 1
select 1 as usable;
\echo ---- errors
\endpipeline
\startpipeline
select 1;
select $1 \bind 'usable' \sendpipeline
\endpipeline
\startpipeline
select $1 \bind \sendpipeline
\syncpipeline
select $1 \bind 'after the sync' \sendpipeline
\endpipeline
\startpipeline
select \bind 'too many' \sendpipeline
select $1 \bind 'skipped' \sendpipeline
\endpipeline
\startpipeline
begin \bind \sendpipeline
insert into matrix_pipe values ($1) \bind 1 \sendpipeline
rollback \bind \sendpipeline
\endpipeline
rollback;
\startpipeline
select \bind \sendpipeline
\watch 1
\endpipeline
\startpipeline
select $1 \bind 1 \gdesc
select $1 \bind 1 \g
select $1 \bind 1 \gx
select $1 \bind 1 \gset
select $1 \bind 1 \gexec
select $1 \bind 1 \sendpipeline
\endpipeline
\sendpipeline
select $1 \bind 1 \sendpipeline
\reset
\startpipeline
\sendpipeline
select 1 \sendpipeline
\endpipeline
\startpipeline
select $1 \bind \sendpipeline
select $1 \bind 1 \sendpipeline
select $1 \parse matrix_aborted
\bind_named matrix_aborted 1 \sendpipeline
\close_prepared matrix_aborted
\flushrequest
\getresults
select $1 \bind 1 \sendpipeline
select $1 \parse matrix_aborted
\bind_named matrix_aborted 1 \sendpipeline
\close_prepared matrix_aborted
\syncpipeline
\getresults
select $1 \bind 1 \sendpipeline
select $1 \parse matrix_aborted
\bind_named matrix_aborted 1 \sendpipeline
\close_prepared matrix_aborted
\flushrequest
\getresults
\endpipeline
\startpipeline
select $1 \bind \sendpipeline
select $1 \bind 1 \sendpipeline
\syncpipeline
\getresults 1
\getresults 1
\getresults 1
\endpipeline
\startpipeline
\set FETCH_COUNT 10
select $1 \bind \sendpipeline
\flushrequest
\getresults
select $1 \bind \sendpipeline
\endpipeline
\unset FETCH_COUNT
\echo ---- transactions
\startpipeline
set local statement_timeout = '1h' \bind \sendpipeline
show statement_timeout \bind \sendpipeline
\syncpipeline
show statement_timeout \bind \sendpipeline
set local statement_timeout = '2h' \bind \sendpipeline
show statement_timeout \bind \sendpipeline
\endpipeline
\startpipeline
set work_mem = '5MB' \bind \sendpipeline
select 1 / $1::int \bind 0 \sendpipeline
\syncpipeline
show work_mem \bind \sendpipeline
set work_mem = '6MB' \bind \sendpipeline
\syncpipeline
show work_mem \bind \sendpipeline
reset work_mem \bind \sendpipeline
\endpipeline
show work_mem;
\startpipeline
select $1 \bind 1 \sendpipeline
reindex table concurrently matrix_pipe \bind \sendpipeline
select $1 \bind 2 \sendpipeline
\endpipeline
\startpipeline
reindex table concurrently matrix_pipe \bind \sendpipeline
select $1 \bind 2 \sendpipeline
\endpipeline
\startpipeline
savepoint a \bind \sendpipeline
select $1 \bind 1 \sendpipeline
rollback to savepoint a \bind \sendpipeline
select $1 \bind 2 \sendpipeline
\endpipeline
\startpipeline
lock matrix_pipe \bind \sendpipeline
select $1 \bind 2 \sendpipeline
\endpipeline
\startpipeline
select $1 \bind 1 \sendpipeline
lock matrix_pipe \bind \sendpipeline
select $1 \bind 2 \sendpipeline
\endpipeline
\startpipeline
vacuum matrix_pipe \bind \sendpipeline
\endpipeline
\startpipeline
select 1 \bind \sendpipeline
vacuum matrix_pipe \bind \sendpipeline
\endpipeline
\startpipeline
select 1 \bind \sendpipeline
\syncpipeline
vacuum matrix_pipe \bind \sendpipeline
\endpipeline
begin;
\startpipeline
insert into matrix_pipe values ($1) \bind 700 \sendpipeline
\flushrequest
\getresults
select count(*) from matrix_pipe where a = $1 \bind 700 \sendpipeline
\syncpipeline
\endpipeline
select 1 / 0;
\startpipeline
select $1 \bind 'in a failed block' \sendpipeline
\syncpipeline
rollback \bind \sendpipeline
\syncpipeline
select count(*) from matrix_pipe where a = $1 \bind 700 \sendpipeline
\endpipeline
drop table matrix_pipe;
\echo ==== lists by column
\dtx matrix_psql
\dx+
\dxx
\dnx matrix*
\dfx matrix_function
\dTx matrix_enum
\lx template1
\dux app
\dAcx btree int4
\zx matrix_psql
\dRpx
\dconfigx work_mem
\echo :WATCH_INTERVAL
\set WATCH_INTERVAL 0.01
create sequence matrix_watch_18;
\t on
select 6 / (3 - nextval('matrix_watch_18')) as left \watch
\t off
\unset WATCH_INTERVAL
\o conninfo.txt
\conninfo
\o
\! grep -E 'Client User|Protocol|Password|GSSAPI|Superuser|Hot Standby' conninfo.txt
\set VERBOSITY verbose

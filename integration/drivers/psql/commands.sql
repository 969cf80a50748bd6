-- Every command of psql that a script can give and that says the same each time, over objects of every kind.
\echo ["version", :VERSION_NAME
\cd :scratch
\pset pager off
\qecho every command of psql
\set VERBOSITY verbose
\set SHOW_CONTEXT errors
\set QUIET on
set client_min_messages = warning;
drop schema if exists matrix_psql cascade;
reset client_min_messages;
create schema matrix_psql;
set search_path = matrix_psql, public;
create domain matrix_domain as int check (value > 0);
create type matrix_enum as enum ('a', 'b');
create type matrix_pair as (x int, y text);
create table matrix_psql(id int primary key, word text default 'w' check (length(word) < 100), kind char(1));
create table matrix_child(id serial, parent int references matrix_psql on delete cascade, made timestamptz, e matrix_enum, n matrix_domain, g int generated always as (1 + 1) stored);
create table matrix_parted(a int, b text) partition by range (a);
create table matrix_part partition of matrix_parted for values from (0) to (10);
create index matrix_words on matrix_psql(lower(word)) where id > 0;
create view matrix_view as select * from matrix_psql;
create materialized view matrix_mat as select count(*) from matrix_psql;
create sequence matrix_sequence start 5;
create function matrix_function(a int) returns int language sql as 'select a + 1';
create procedure matrix_procedure() language plpgsql as 'begin raise notice ''in it''; end';
create function matrix_touch() returns trigger language plpgsql as 'begin return new; end';
create trigger matrix_trigger before insert on matrix_child for each row execute function matrix_touch();
create rule matrix_rule as on delete to matrix_child do also notify matrix_deleted;
alter table matrix_psql enable row level security;
create policy matrix_policy on matrix_psql for select using (true);
create statistics matrix_statistics on id, word from matrix_psql;
create aggregate matrix_sum(int) (sfunc = int4pl, stype = int);
create collation matrix_collation from "C";
grant select on matrix_psql to public;
comment on table matrix_psql is 'a table';
insert into matrix_psql select n, 'word ' || n, chr(97 + n % 3) from generate_series(1, 12) n;
\echo ==== d
\d matrix_psql
\d+ matrix_psql
\d matrix_child
\d+ matrix_parted
\d matrix_part
\d matrix_words
\d+ matrix_view
\d matrix_mat
\d matrix_sequence
\d matrix_pair
\d
\d nothing_like_it
\echo ==== lists
\dt
\dt+ matrix_v*
\di
\dv
\dm
\ds
\dP
\df
\df+ matrix_function
\da matrix*
\dT
\dT+ matrix_enum
\dD
\dO matrix*
\dX
\dy
\dn matrix*
\dp
\z matrix_psql
\ddp
\dd
\dL
\dx
\dF english
\dFp
\dFd simple
\dFt
\dRp
\dRs
\dC matrix*
\dc pg_catalog.ascii*
\dA
\dAc btree int4
\dAf btree int4
\dAo btree integer_ops
\dAp btree integer_ops
\db
\des
\deu
\det
\dew
\drds
\dconfig work_mem
\dconfig enable_*join*
\du app
\dg app
\do ||
\l template*
\sf matrix_function
\sf+ matrix_touch
\sv matrix_view
\encoding
\echo ==== results
select kind, count(*) from matrix_psql group by 1 order by 1 \g
select id, word from matrix_psql where id = 1 \gx
select 7 as seven \g (format=unaligned tuples_only=on)
select word as first_word, id as first_id from matrix_psql order by id limit 1 \gset
\echo :first_word :first_id :'first_word' :"first_word"
select format('select %s as made', n) from generate_series(1, 3) n \gexec
select id, word, kind from matrix_psql limit 0 \gdesc
select id % 2 as odd, kind, count(*) from matrix_psql group by 1, 2 order by 1, 2 \crosstabview
select 1 as a \; select 2 as b \; select 3 as c;
select 1 \; select 1/0 \; select 3;
\set SHOW_ALL_RESULTS off
select 1 as a \; select 2 as b;
\set SHOW_ALL_RESULTS on
\echo ==== output
\x on
select * from matrix_psql where id < 3 order by id;
\x off
\a
select * from matrix_psql where id < 3 order by id;
\a
\t on
\f ','
\H
select 1 as a;
\H
\t off
\pset format csv
select 1 as a, 'x,y' as b;
\pset format aligned
\pset null '(null)'
select null as a;
\o out.txt
select * from matrix_psql order by id;
\o
\! cat out.txt
\qecho queried
\w written.sql
select count(*) from matrix_psql
\p
\w written.sql
\r
\! cat written.sql
\i written.sql
;
\! echo "select 'relative' as included;" > inner.sql
\! printf '%s\n' '\ir inner.sql' > outer.sql
\i outer.sql
\setenv PSQL_EDITOR 'sed -i -e s/a.+.1/a+2/ -e s/here/there/'
select 'here' as edited
\e
;
\ef matrix_function
\g
select matrix_function(1);
\ev matrix_view
\p
\r
\ir no_such_file.sql
\warn to standard error
\T border=1
\H
select 1 as a;
\H
\T
\s history.txt
\copyright
\? variables
create sequence matrix_watch;
\t on
select 6 / (3 - nextval('matrix_watch')) as left \watch 0.01
\t off
\echo ==== copy
\copy (select * from matrix_psql order by id limit 2) to stdout csv header
\copy (select * from matrix_psql order by id) to 'all.csv' csv
\copy matrix_parted from program 'seq -f %.0f,x 0 9' csv
\copy matrix_psql to program 'wc -l'
create temp table again (like matrix_psql);
\copy again from 'all.csv' csv
select count(*) from again;
\copy again from 'no_such_file.csv'
\copy no_such_table from 'all.csv'
drop table again;
copy matrix_psql from stdin;
100	copied	z
101	\N	z
\.
copy matrix_psql from stdin;
bad	line
\.
select count(*) from matrix_psql;
copy (select 1) to stdout \g copied.txt
\! cat copied.txt
copy matrix_psql from stdin \; select 'after the copy';
102	two	z
\.
\echo ==== large objects
\lo_import all.csv 'a comment'
select :LASTOID > 0 as imported;
\lo_export :LASTOID exported.csv
\! cmp all.csv exported.csv && echo same
select count(*) from pg_largeobject_metadata where oid = :LASTOID;
\lo_unlink :LASTOID
select count(*) from pg_largeobject_metadata where oid = :LASTOID;
\lo_unlink 1
select lo_create(777777);
comment on large object 777777 is 'a large object';
\lo_list
\dl
\lo_unlink 777777
\echo ==== transactions
\set AUTOCOMMIT off
insert into matrix_psql values (200);
rollback;
insert into matrix_psql values (201);
commit;
\set AUTOCOMMIT on
select count(*) from matrix_psql where id between 200 and 201;
\set ON_ERROR_ROLLBACK on
begin;
insert into matrix_psql values (202);
select 1/0;
insert into matrix_psql values (1);
select 'goes on';
commit;
select count(*) from matrix_psql where id = 202;
\set ON_ERROR_ROLLBACK off
begin;
select 1/0;
select 1;
commit;
begin read only;
insert into matrix_psql values (203);
rollback;
begin \; select 1 as one \; commit;
begin;
declare c scroll cursor for select id from matrix_psql order by id;
fetch 2 from c;
move last from c;
fetch backward 1 from c;
commit;
declare h cursor with hold for select id from matrix_psql order by id;
fetch 2 from h;
close h;
\set FETCH_COUNT 5
select id from matrix_psql order by id;
select 1/(id - 8) from matrix_psql order by id;
\unset FETCH_COUNT
prepare transaction 'none';
\echo ==== errors
select 1/0;
\errverbose
select * from no_such;
select 1 +;
\echo :ERROR :SQLSTATE :ROW_COUNT :LAST_ERROR_SQLSTATE
select 1 where false;
\echo :ERROR :SQLSTATE :ROW_COUNT
insert into matrix_psql values (1);
insert into matrix_psql(id, word) values (300, repeat('x', 200));
do $$ begin raise exception 'of ours' using errcode = 'MX001', detail = 'in detail', hint = 'a hint', table = 't'; end $$;
do $$ begin raise notice 'hello'; raise warning 'careful'; end $$;
call matrix_procedure();
\no_such_command
\echo ==== session
prepare p(int) as select word from matrix_psql where id = $1;
execute p(3);
execute p(4);
select name, statement, parameter_types from pg_prepared_statements where name = 'p';
deallocate p;
execute p(3);
set datestyle = 'german';
select '2026-01-02'::date;
show datestyle;
begin;
set local datestyle = 'sql';
show datestyle;
rollback;
show datestyle;
reset datestyle;
set role none;
show role;
set session characteristics as transaction isolation level serializable;
show transaction_isolation;
set session characteristics as transaction isolation level read committed;
\encoding LATIN1
show client_encoding;
select length('abc');
\encoding UTF8
show client_encoding;
create temp table mine(a int);
insert into mine values (1), (2) returning a;
select sum(a) from mine;
discard temp;
select sum(a) from mine;
select pg_advisory_lock(78), pg_try_advisory_lock(78);
select pg_advisory_unlock_all();
select nextval('matrix_sequence'), nextval('matrix_sequence');
select currval('matrix_sequence'), lastval();
discard all;
show search_path;
select currval('matrix_psql.matrix_sequence');
set search_path = matrix_psql, public;
explain (costs off) select * from matrix_psql where id = 1;
\password no_such_role
\echo ==== scripting
\if true
select 'in an if';
\elif false
select 'not here';
\else
select 'nor here';
\endif
select 1 = 1 as yes \gset
\if :yes
\echo yes
\endif
\set a 5
select :a + 1 as six;
select :{?a} as known, :{?b} as unknown;
\unset a
\prompt 'name? ' given
\echo :given
\setenv MATRIX here
\! echo $MATRIX
\getenv got MATRIX
\echo :got
\timing off
\cd /
\C 'a title'
select 1 as a;
\C
\h nothing_like_it
\g
\echo ==== what newer ones have
\cd :scratch
select :VERSION_NUM >= 160000 as of_16, :VERSION_NUM >= 170000 as of_17, :VERSION_NUM >= 180000 as of_18 \gset
\if :of_16
\ir of_16.sql
\endif
\if :of_17
\ir of_17.sql
\endif
\if :of_18
\ir of_18.sql
\endif
\echo ==== connections
\c
set search_path = matrix_psql, public;
select count(*) from matrix_psql;
\c - - - 
\! psql -X -c '\conninfo' | sed -n '1s/.*\(as user .*\) at port.*/\1/p'
select current_user;
select 'still here';
listen tidings;
notify tidings, 'news';
select 1 as a;
unlisten *;
\echo ==== end
set client_min_messages = warning;
drop schema matrix_psql cascade;

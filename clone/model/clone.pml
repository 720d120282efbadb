/*
 * The protocol of package clone, as a model for spin.
 *
 * A region is copied from the source to the destination, recorded in the
 * journal, and then destroyed on the source. The model runs everything that may
 * happen at the same time, crashes at any instant, starts again from what the
 * crash left, crashes again, and asks each time whether every region is whole on
 * the side that the journal says owns it. model_test.go runs it; to run it by
 * hand:
 *
 *     spin -a -DN=2 -DWITH_FAILURES clone.pml
 *     gcc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan -m1000000
 *     spin -t -p -g -DN=2 -DWITH_FAILURES clone.pml    # after an error: how it came
 *
 * What stands for what:
 *
 *     model                                    program
 *     ---------------------------------------  ---------------------------------
 *     hydrator: startCopy, write, soil         clone.Hydrate: claim, copyRun, soil
 *     Commit                                   clone.Commit
 *       seal, flush, journal, publish            its four steps, in its words
 *       abort                                  clone.abort: the mode, and forget
 *     committer: take                          clone.TakeCommitted
 *       Mark, drain and punch, note            clone.DiscardSource: its four steps
 *       Mark                                   Marker.Mark: written, then durable
 *     guest: begin, write, soil                clone.WriteAt, Zero and Discard:
 *                                              beginChange, fillClaimed, soilChanged;
 *                                              its flush is a clone.Commit of its own
 *     reader                                   clone.ReadAt: beginRead, endRead
 *     init: REFUSED                            the mark against the journal, in package
 *                                              service before anything is opened
 *       openClone                              journal.Open, clone.Open
 *
 * Data is a version: 0 is nothing or torn bytes, 1 is what the source held at
 * the start, 2 and more is what the guest has written. What ends in _v (or v) is
 * what a program sees; what ends in _d (or d) is what a power loss leaves.
 *
 * A crash is a power loss, after which each volatile item by itself survives or
 * does not (a journal transaction as a whole), or, WITH_KILL, the death of the
 * process, after which everything volatile is still there, and still volatile.
 *
 * A flush takes effect at one instant, the earliest that its promise allows; what
 * is written while it runs is in the cache like anything else. A copy may be torn
 * by a crash, but only where nothing has been recorded, which is copied anew.
 *
 * The mark against the journal: a restart that finds a mark of a higher transaction
 * than the journal's last is refused, and nothing moves after that. What both media
 * hold then is still right for the journal that is missing, because it was when the
 * crash came. Without a mark nothing has been discarded, so that a new journal may
 * begin with everything on the source.
 *
 * A journal is made durable again when it is opened, by writing it anew: after a
 * failed sync a second one that succeeds says nothing of the pages that the first
 * one lost. The same is true of a mark that is read back.
 *
 * Options, each a -D flag:
 *
 *     N=n            regions, 1 to 3
 *     LIVES=n        lives of the process; each one ends in a crash
 *     WITH_READER    somebody reads the device
 *     WITH_GUEST     somebody writes to it, or to a part of a region, and flushes
 *     WITH_SUMS      the journal keeps checksums, which guests make wrong
 *     WITH_FAILURES  the destination's flush, the journal's commit and the mark may fail
 *     WITH_KILL      crashes that leave the machine running
 *     WITH_JLOSS     between two lives the journal may be lost, or replaced by an
 *                    older backup of itself
 *     BUG_*          a mistake that the checks must find; each is explained
 *                    where it is planted
 *     REACH_*        fails where the model gets to an interesting place, as
 *                    proof that the forms without errors have been there
 *
 * N=2 with two lives and every WITH_ option is 8 million states, and 2 million
 * without the reader; N=3 is one million without the guest. All are searched to their
 * end, and with every option no statement is left unreached.
 *
 * A guest's discard is a write of zeros as far as the protocol cares: what holds for
 * the one holds for the other. A write of a part of a region makes a whole version of
 * it only where the rest is there.
 *
 * Not in the model: several guests that share a commit, holes, media that
 * lie about a flush, a thin pool that rolls its metadata back, the way back
 * (reverse), and two journals that have a past in common and part later: restored
 * in turn, their transactions have equal numbers and different regions.
 */

#ifndef N
#define N 2
#endif
#ifndef LIVES
#define LIVES 2
#endif

/* What the media hold. */
bit  src_v[N], src_d[N];  /* 1 original data, 0 punched */
byte dst_v[N], dst_d[N];  /* version */
byte jv[N], jd[N];        /* the transaction that recorded the region; 0: none did */
#ifdef WITH_SUMS
bit  sumv[N], sumd[N];    /* the journal has the checksum of version 1 */
#endif
bit  noted[N];            /* the journal notes the region as discarded */
byte markv, markd;        /* mark on the source: highest transaction whose discards
                             may have begun; 0: no mark */

/* What the process holds in memory. A region moves down this list, or
   back to its top. */
#define UNHYDRATED 0
#define DIRTY      1      /* on the destination, perhaps in its cache */
#define SEALED     2      /* in the commit that is running */
#define HYDRATED   3      /* published: recorded in the journal for good */
#define TAKEN      4      /* being discarded on the source */
#define DISCARDED  5      /* ... and noted */
byte st[N];
bit  busy[N];             /* lock of one region */
#ifdef WITH_SUMS
/* A guest writes in place only where no checksum is in the journal or on its way
   there. A region moves down this list. */
#define SUMMED    0
#define ANNOUNCED 1       /* goes with the next transaction */
#define GOING     2       /* goes with the one that is being committed */
#define UNSUMMED  3
byte sum[N];
#endif
byte rd[N];               /* reads in flight on the source */
bit  committing;          /* lock of Commit */
bit  ro;                  /* mode: read-only. Nothing but a restart resets it */

/* What the checks remember. */
byte acked[N];            /* version that a flush has promised */
bit  told[N];             /* the guest was told that its write is done */
bit  crashed;
byte life;

/* Scratch of single steps; never part of a state. */
hidden byte k, tx, kept, lost;

#define EACH for (k : 0 .. N-1)
#define SOME(state) (st[0] == state || st[N/2] == state || st[N-1] == state)

/* A process stops between any two steps when the machine does. The processes
   leave in a fixed order, which spares states and means nothing. */
#define UNLESS_CRASHED unless { crashed && _nr_pr == _pid+1 }

inline highestTx() { tx = 0; EACH { if :: jv[k] > tx -> tx = jv[k] :: else fi } }

/* ------------------------------------------------------------------ commit */

#ifdef WITH_SUMS
inline sealSum()     { if :: sum[k] == ANNOUNCED -> sum[k] = GOING :: else fi }
inline publishSum()  { if :: sum[k] == GOING -> sum[k] = UNSUMMED :: else fi }
inline journalSum()  {
	if
	:: sum[k] == GOING -> sumv[k] = 0
	:: else -> if :: st[k] == SEALED -> sumv[k] = (sum[k] != UNSUMMED) :: else fi
	fi
}
inline syncSum()     { sumd[k] = sumv[k] }
inline forgetSum()   { sum[k] = SUMMED }
#define GOES(k) (st[k] == SEALED || sum[k] == GOING)
#define SOME_ANNOUNCED (sum[0] == ANNOUNCED)
#else
inline sealSum()     { skip }
inline publishSum()  { skip }
inline journalSum()  { skip }
inline syncSum()     { skip }
inline forgetSum()   { skip }
#define GOES(k) (st[k] == SEALED)
#define SOME_ANNOUNCED false
#endif
#define SOMETHING_GOES (GOES(0) || GOES(N/2) || GOES(N-1))

inline seal()        { EACH { if :: st[k] == DIRTY -> st[k] = SEALED :: else fi; sealSum() } }
inline flushed()     { EACH { dst_d[k] = dst_v[k] } }
inline journalWrite(){ highestTx(); EACH { journalSum(); if :: st[k] == SEALED -> jv[k] = tx+1 :: else fi } }
inline journalSync() { EACH { jd[k] = jv[k]; syncSum() } }
inline publish()     { EACH { if :: st[k] == SEALED -> st[k] = HYDRATED :: else fi; publishSum() } }

/* After a failed flush each write since the last good one may be gone, and the
   medium may show that to the next reader. */
inline writesGone()  { EACH { if :: dst_v[k] != dst_d[k] -> dst_v[k] = dst_d[k] :: true fi } }

/* What was not committed goes back to the source, which is whole: nothing of it
   has been discarded. (What the guest wrote and did not flush is lost with it.) */
inline abort() {
	ro = 1; committing = 0; done = 0;
#ifndef BUG_NOFORGET /* the mistake: reads trust what a failed flush may have lost */
	EACH { if :: st[k] == DIRTY || st[k] == SEALED -> st[k] = UNHYDRATED; forgetSum() :: else fi }
#endif
}

/* done says whether it returned nil. when is a condition to wait for. */
inline Commit(done, when) {
	atomic { !crashed && !committing && (when) ->
		if
		:: ro -> done = 0
		:: else -> done = 1; committing = 1;
#ifndef BUG_SNAP
			seal()
#endif
		fi
	}
#ifndef BUG_EMPTYFLUSH
#define NEEDS_FLUSH done
#else /* the mistake: where nothing is to be journaled, nothing is flushed */
#define NEEDS_FLUSH (done && SOMETHING_GOES)
#endif
	if
	:: NEEDS_FLUSH ->
		atomic { !crashed ->
			if
			:: flushed()
#ifdef WITH_FAILURES
			:: writesGone();
#ifndef BUG_RETRY
				abort()
#else /* the mistake: a second flush reports nothing, as the error was told once */
				flushed()
#endif
#endif
			fi
		}
	:: else
	fi;
#ifdef BUG_SNAP /* the mistake: what is written during the flush is sealed as if it were flushed */
	if :: done -> atomic { !crashed -> seal() } :: else fi;
#endif
	if
	:: done && SOMETHING_GOES ->
		d_step { !crashed -> journalWrite() }
#ifdef BUG_EARLY /* the mistake: published before the transaction is durable */
		atomic { !crashed -> publish() }
#endif
		atomic { !crashed ->
			if
#ifndef BUG_NOSYNC
			:: journalSync()
#else /* the mistake: the journal's commit does not wait for the medium */
			:: true
#endif
#ifdef WITH_FAILURES /* written or not: nobody knows */
			:: abort()
#endif
			fi
		}
	:: else
	fi;
	if
	:: done -> d_step { !crashed -> publish(); committing = 0 }
	:: else
	fi
}

/* --------------------------------------------------------------- processes */

#ifndef BUG_LOCK
#define LOCKED(i) busy[i]
#define LOCK(i)   busy[i] = 1
#define UNLOCK(i) busy[i] = 0
#else /* the mistake: only the guest's writes take the region's lock */
#define LOCKED(i) false
#define LOCK(i)   skip
#define UNLOCK(i) skip
#endif

/* The destination was sent the whole region. After an abort that counts for
   nothing: it may have been sent before the flush that failed. */
#ifndef BUG_LATESOIL
#define MAYSOIL !ro
#else /* the mistake: a copy that ends after an abort is taken for good */
#define MAYSOIL true
#endif
inline soil() { if :: st[i] == UNHYDRATED && MAYSOIL -> st[i] = DIRTY :: else fi }

#ifndef BUG_RECOPY
#define COPYABLE(r) (!crashed && !ro && st[r] == UNHYDRATED && !LOCKED(r))
#else /* the mistake: what is dirty is copied once more */
#define COPYABLE(r) (!crashed && !ro && st[r] <= DIRTY && !LOCKED(r))
#endif

/* Copies region after region, in any order: a read can move one forward. */
inline startCopy(r) { i = r; LOCK(r); v = src_v[r] }

proctype hydrator() {
	byte i; bit v;
	{
		do
		:: d_step { !crashed && !SOME(UNHYDRATED) -> i = 0 }; break
		:: if
			:: d_step { COPYABLE(0) -> startCopy(0) }
#if N > 1
			:: d_step { COPYABLE(N-1) -> startCopy(N-1) }
#endif
#if N > 2
			:: d_step { COPYABLE(1) -> startCopy(1) }
#endif
			fi;
			d_step { !crashed -> dst_v[i] = v }
			d_step { !crashed -> soil(); UNLOCK(i); v = 0 }
		od
	} UNLESS_CRASHED
}

#ifndef BUG_MARKBELIEVED
#define MARK_BELIEVED false
#else /* the mistake: a mark that can be read is taken for one that is durable */
#define MARK_BELIEVED (markv >= tx)
#endif

/* The mark names the last transaction whose regions were taken. done says
   whether it is durable. */
inline Mark(done) {
	d_step { !crashed ->
		highestTx(); done = MARK_BELIEVED;
		if :: tx > markv -> markv = tx :: else fi }
	atomic { !crashed ->
		if
		:: done -> skip
		:: !done -> markd = markv; done = 1
#ifdef WITH_FAILURES
		:: !done -> skip
#endif
		fi
	}
}

#ifndef BUG_READER
#define DRAINED(i) (rd[i] == 0)
#else /* the mistake: a read may still be on its way to the source */
#define DRAINED(i) true
#endif

#ifdef REACH_DONE
#define REACHED_DONE assert(life < LIVES-1 || st[0] + st[N/2] + st[N-1] < 3*DISCARDED)
#else
#define REACHED_DONE skip
#endif

/* The background run: commits while something is dirty or announced (which the
   program leaves to the guest who announces it), discards what is committed. The mode is looked at before a discard begins; one that has begun
   may end, since its regions are committed. */
proctype committer() {
	byte i; bit done;
	{
		do
		:: Commit(done, SOME(DIRTY) || SOME_ANNOUNCED || ro); if :: done -> done = 0 :: else -> break fi
		:: d_step { !crashed && !ro && SOME(HYDRATED) ->
				EACH { if :: st[k] == HYDRATED -> st[k] = TAKEN :: else fi };
				i = 0 }
#if !defined(BUG_NOMARK) && !defined(BUG_MARKLATE)
			Mark(done); if :: done -> done = 0 :: else -> break fi;
#endif
			do
			:: i == N -> break
			:: d_step { i < N && !crashed && st[i] != TAKEN -> i++ }
			:: d_step { i < N && !crashed && st[i] == TAKEN && DRAINED(i) -> src_v[i] = 0; i++ }
			od;
#ifdef BUG_MARKLATE /* the mistake: a crash comes between a discard and its mark */
			Mark(done); if :: done -> done = 0 :: else -> break fi;
#endif
			atomic { !crashed ->
				EACH { if :: st[k] == TAKEN -> st[k] = DISCARDED; noted[k] = 1 :: else fi };
				REACHED_DONE
			}
		od
	} UNLESS_CRASHED
}

/* Overwrites one region, or a part of it, and flushes; in each life it is another
   version. */
#define GUEST_VERSION (2 + life)

/* Nobody else fills the region. */
#define FREE(r) (!crashed && !ro && !busy[r])

#ifndef BUG_PARTIAL
#define REST(r) (src_v[r])
#else /* the mistake: a write of a part of a region does not copy the rest */
#define REST(r) 0
#endif

#ifndef BUG_TRIM
#define FORGETS(whole) skip
#else /* the mistake: a trim of a region is only taken as a hint to spare the copy */
#define FORGETS(whole) if :: whole && fills -> fills = 0; busy[i] = 0 :: else fi
#endif

/* v is what comes of the write: a whole version, or a part with nothing around it. */
inline begin(r, whole) {
	i = r;
	if
	:: whole -> v = 1
	:: !whole && st[r] == UNHYDRATED -> v = REST(r)
	:: !whole && st[r] != UNHYDRATED -> v = dst_v[r] >= 1
	fi;
	if
	:: st[r] == UNHYDRATED -> busy[r] = 1; fills = 1
	:: else -> unsum(r)
	fi;
	FORGETS(whole)
}

#ifdef WITH_SUMS
#define IN_PLACE(r) (st[r] <= DIRTY || sum[r] == UNSUMMED)
inline unsum(r) { sum[r] = UNSUMMED }
#else
#define IN_PLACE(r) true
inline unsum(r) { skip }
#endif
#ifndef BUG_LAZYSUM
#define MAY_BEGIN(r) (FREE(r) && IN_PLACE(r))
#else /* the mistake: a checksum goes with the next commit, after the write */
#define MAY_BEGIN(r) FREE(r)
#endif

proctype guest() {
	byte i; bit done, v, fills;
	{
		do
		:: d_step { MAY_BEGIN(0) -> begin(0, true) }; break
		:: d_step { MAY_BEGIN(0) -> begin(0, false) }; break
#if N > 1
		:: d_step { MAY_BEGIN(N-1) -> begin(N-1, true) }; break
		:: d_step { MAY_BEGIN(N-1) -> begin(N-1, false) }; break
#endif
#ifdef WITH_SUMS
		:: d_step { FREE(0) && !MAY_BEGIN(0) && sum[0] == SUMMED -> sum[0] = ANNOUNCED }
#endif
		od;
		atomic { !crashed -> dst_v[i] = (v -> GUEST_VERSION : 0) };
		d_step { !crashed ->
			if :: fills -> soil(); unsum(i); busy[i] = 0 :: else fi;
			told[i] = !ro; fills = 0; v = 0 }
#ifndef BUG_ACK
		Commit(done, true);
#else /* the mistake: the guest's flush reaches the destination, but not the journal */
		atomic { !crashed -> flushed(); done = 1 };
#endif
		if :: done -> d_step { !crashed -> acked[i] = GUEST_VERSION; i = 0; done = 0 } :: else fi
	} UNLESS_CRASHED
}

#define ON_SOURCE      1
#define ON_DESTINATION 2
#define IN_CACHE       3      /* on the destination, and not promised to anybody */

/* Only a guest's write makes a version above 1. */
#ifndef BUG_STALE
#define CHANGED(r) (dst_v[r] > 1)
#else /* the mistake: what is not hydrated is read from the source */
#define CHANGED(r) false
#endif

inline startRead(r) {
	i = r; need = told[r];
	assert(!ro || st[r] == UNHYDRATED || st[r] >= HYDRATED);
	if
	:: st[r] >= HYDRATED -> from = ON_DESTINATION
	:: st[r] < HYDRATED && st[r] != UNHYDRATED && CHANGED(r) -> from = IN_CACHE
	:: else -> from = ON_SOURCE; rd[r]++
	fi
}

#ifndef BUG_OVERTAKEN
#define OVERTAKEN (from == IN_CACHE && ro)
#else /* the mistake: a read is believed whose bytes a failed flush may have lost */
#define OVERTAKEN false
#endif

/* Reads any region, again and again. What a guest has been told before a read began,
   the read shows, unless a flush has failed. */
proctype reader() {
	byte i, from; bit need;
	{
		do
		:: d_step { !crashed && from == 0 -> startRead(0) }
#if N > 1
		:: d_step { !crashed && from == 0 -> startRead(N-1) }
#endif
		:: d_step { !crashed && from == ON_SOURCE ->
				assert(src_v[i] == 1); /* I3 */
				assert(!need || ro);
				rd[i]--; from = 0; need = 0; i = 0 }
		:: d_step { !crashed && from >= ON_DESTINATION ->
				assert(OVERTAKEN || dst_v[i] >= 1);
				assert(!need || ro || dst_v[i] == GUEST_VERSION);
				from = 0; need = 0; i = 0 }
		od
	} UNLESS_CRASHED
}

/* ------------------------------------------------------ crash and restart */

#ifdef WITH_SUMS
inline loseSum()   { sumv[k] = sumd[k] }
inline noSum()     { sumv[k] = 0; sumd[k] = 0 } /* an older backup can have wrong ones */
#define SUM_FITS(k) (!sumd[k] || dst_d[k] == 1)
#else
inline loseSum()   { skip }
inline noSum()     { skip }
#define SUM_FITS(k) true
#endif

inline forgetMemory() {
	ro = 0; committing = 0;
	EACH { st[k] = UNHYDRATED; busy[k] = 0; rd[k] = 0; told[k] = 0; forgetSum() }
}

inline powerLoss() {
	if :: journalSync() :: EACH { jv[k] = jd[k]; loseSum() } fi;
	if :: markd = markv :: markd != markv -> markv = markd fi;
	EACH {
		if :: dst_d[k] = dst_v[k] :: dst_d[k] != dst_v[k] -> dst_v[k] = dst_d[k] fi;
		if :: src_d[k] = src_v[k] :: src_d[k] != src_v[k] -> src_v[k] = src_d[k] fi;
		if :: true :: noted[k] -> noted[k] = 0 fi
	}
}

/* Every region is whole on the side that the journal says owns it, and holds
   what a flush has promised. Looked at on the durable side alone: after a kill
   the power may go at once. */
inline checkMedia() {
	EACH {
		if
		:: jd[k] -> assert(dst_d[k] >= 1 && dst_d[k] >= acked[k] && SUM_FITS(k))
		:: else  -> assert(src_d[k] == 1 && acked[k] <= 1)
		fi
	}
}

/* What an operator may do to a journal while nobody runs. The backups that can
   exist are the states after each transaction. What the guest was promised by
   the transactions that are gone is gone with them, if no mark keeps the clone
   from running: that is not what the checks are about. */
inline loseJournal() {
	highestTx(); lost = 0; kept = tx;
	if
	:: true
	:: lost = 1; kept = 0
	:: tx > 0 -> kept = 0; do :: kept+1 < tx -> kept++ :: break od
	fi;
	if
	:: kept < tx || lost ->
		EACH {
			if :: jv[k] > kept -> jv[k] = 0; acked[k] = 1; noted[k] = 0 :: else fi;
			jd[k] = jv[k];
			noSum()
		}
	:: else
	fi
}

/* The mark against the journal. */
#ifdef BUG_NOMARK /* the mistake: a journal that is not there is a new migration */
#define REFUSED false
#else
#ifdef BUG_OLDJOURNAL /* the mistake: any journal of this migration is good enough */
#define REFUSED (lost && markv > 0)
#else
#define REFUSED (kept < markv)
#endif
#endif

/* Takes over what the journal says. It is made durable first: after a kill the
   last transaction may be seen and yet not be on the medium. */
inline openClone() {
#ifndef BUG_BELIEVE /* the mistake: a transaction is believed because it can be read */
	journalSync();
#endif
	EACH {
		if
		:: jv[k] && noted[k] -> st[k] = DISCARDED
		:: jv[k] && !noted[k] -> st[k] = HYDRATED
		:: else ->
#ifdef BUG_RECOVER /* the mistake: what lies on the destination is taken for hydrated */
			if :: dst_v[k] >= 1 -> st[k] = HYDRATED :: else fi
#else
			skip
#endif
		fi
	}
}

#ifdef REACH_REFUSED
#define REACHED_REFUSED assert(false)
#else
#define REACHED_REFUSED skip
#endif
#ifdef REACH_RESTORED /* with less than there was, and a mark */
#define REACHED_RESTORED assert(kept == tx || markv == 0)
#else
#define REACHED_RESTORED skip
#endif

init {
	atomic { EACH { src_v[k] = 1; src_d[k] = 1; acked[k] = 1 } }
	do
	:: atomic {
			crashed = 0;
#ifdef WITH_READER
			run reader();
#endif
			run hydrator();
#ifdef WITH_GUEST
			run guest();
#endif
			run committer()
		}
		d_step { crashed = 1; forgetMemory() } /* at any instant */
		atomic { _nr_pr == 1 ->
			if
			:: powerLoss()
#ifdef WITH_KILL
			:: life < LIVES-1 -> skip
#endif
			fi;
			checkMedia();
			life++;
			if :: life == LIVES -> break :: else fi;
#ifdef WITH_JLOSS
			loseJournal();
			if :: REFUSED -> REACHED_REFUSED; break :: else fi;
			checkMedia();
			REACHED_RESTORED;
#endif
			openClone()
		}
	od
}

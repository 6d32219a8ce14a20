/* SPDX-License-Identifier: MIT */
/* See scheduler.h. Lists are short (requests of one model at one time), so everything is a plain scan. */
#include "engine/scheduler.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/macros.h"
#include "base/map.h"

#define SMOOTH 0.25 /* weight of the newest measurement */

enum { PROMPT, DECODE, QUEUES };

struct sched_owner {
    uint64_t label;
    double weight;
    double tag[QUEUES];
    bool backlogged[QUEUES]; /* had something to do there in the last plan */
    uint32_t items, before;
};

struct sched {
    struct sched_params params;
    struct map *owners;
    struct sched_item *first, *last;
    uint64_t seq;
    double vtime[QUEUES]; /* tag of the least served owner */
    double prefill_usec, decode_usec; /* per token; 0: not measured */
};

int sched_new(const struct sched_params *p, struct sched **ret)
{
    struct sched *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    if (map_new(&s->owners) < 0) {
        free(s);
        return -ENOMEM;
    }
    s->params = *p;
    *ret = s;
    return 0;
}

struct sched *sched_free(struct sched *s)
{
    struct sched_owner *o;

    if (!s)
        return NULL;
    assert(!s->first);
    for (size_t cursor = 0; (o = map_next(s->owners, &cursor, NULL, NULL));)
        free(o);
    map_free(s->owners);
    free(s);
    return NULL;
}

static int owner_get(struct sched *s, uint64_t label, struct sched_owner **ret)
{
    struct sched_owner *o = map_get_u64(s->owners, label);

    if (!o) {
        o = calloc(1, sizeof(*o));
        if (!o)
            return -ENOMEM;
        o->label = label;
        if (map_put_u64(s->owners, label, o) < 0) {
            free(o);
            return -ENOMEM;
        }
    }
    *ret = o;
    return 0;
}

/* An owner without requests is remembered until the others have caught up with what it got. */
static void forget_owners(struct sched *s)
{
    struct sched_owner *o;

    for (size_t cursor = 0; (o = map_next(s->owners, &cursor, NULL, NULL));)
        if (o->items == 0 &&
            (!s->first || (o->tag[PROMPT] <= s->vtime[PROMPT] && o->tag[DECODE] <= s->vtime[DECODE]))) {
            map_remove_u64(s->owners, o->label);
            free(o);
        }
}

int sched_add(struct sched *s, struct sched_item *i, uint64_t owner, uint32_t weight)
{
    int r = owner_get(s, owner, &i->owner);

    if (r < 0)
        return r;
    i->owner->weight = (double)MAX(weight, 1u) / SCHED_WEIGHT;
    i->owner->items++;
    i->seq = ++s->seq;
    i->prev = s->last;
    i->next = NULL;
    if (s->last)
        s->last->next = i;
    else
        s->first = i;
    s->last = i;
    return 0;
}

void sched_remove(struct sched *s, struct sched_item *i)
{
    if (!i->owner)
        return;
    if (i->prev)
        i->prev->next = i->next;
    else
        s->first = i->next;
    if (i->next)
        i->next->prev = i->prev;
    else
        s->last = i->prev;
    i->owner->items--;
    i->owner = NULL;
    i->prev = i->next = NULL;
    i->running = false;
    forget_owners(s);
}

/* ---------------------------------------------------------------- slots */

uint32_t sched_running(const struct sched *s)
{
    uint32_t n = 0;

    for (const struct sched_item *i = s->first; i; i = i->next)
        n += i->running;
    return n;
}

uint32_t sched_queued(const struct sched *s)
{
    uint32_t n = 0;

    for (const struct sched_item *i = s->first; i; i = i->next)
        n += !i->running;
    return n;
}

/* Sets every item's turn: how many of its owner's requests go before it, those with a slot and those that waited longer.
 * The list is in the order of arrival. */
static void take_turns(const struct sched *s)
{
    for (struct sched_item *i = s->first; i; i = i->next)
        i->owner->before = 0;
    for (struct sched_item *i = s->first; i; i = i->next)
        i->owner->before += i->running;
    for (struct sched_item *i = s->first; i; i = i->next)
        if (!i->running)
            i->turn = i->owner->before++;
}

uint32_t sched_position(const struct sched *s, const struct sched_item *i)
{
    uint32_t position = 1;

    if (i->running)
        return 0;
    take_turns(s);
    for (const struct sched_item *j = s->first; j; j = j->next)
        if (j != i && !j->running)
            position += j->turn < i->turn || (j->turn == i->turn && j->seq < i->seq);
    return position;
}

struct sched_item *sched_next(const struct sched *s)
{
    struct sched_item *best = NULL;
    uint32_t busy = 0;

    for (const struct sched_item *i = s->first; i; i = i->next)
        busy += i->running && !i->paused;
    if (busy >= s->params.max_running)
        return NULL;
    take_turns(s);
    for (struct sched_item *i = s->first; i; i = i->next)
        if (!i->running && !i->paused && (!best || i->turn < best->turn))
            best = i;
    return best;
}

void sched_start(struct sched *s, struct sched_item *i, uint32_t pending)
{
    (void)s;
    i->running = true;
    i->pending = pending;
    i->tag = 0;
}

void sched_set_paused(struct sched *s, struct sched_item *i, bool paused)
{
    (void)s;
    i->paused = paused;
}

void sched_set_pending(struct sched *s, struct sched_item *i, uint32_t pending)
{
    (void)s;
    i->pending = pending;
}

/* ---------------------------------------------------------------- steps */

static bool runnable(const struct sched_item *i, int queue)
{
    return i->running && !i->paused && i->pending > 0 && (i->pending == 1) == (queue == DECODE);
}

/* Sets vtime to the least served owner with work, and lifts the owners that had none up to the others. */
static void level_owners(struct sched *s, int queue)
{
    struct sched_owner *o;
    double least = INFINITY;

    for (struct sched_item *i = s->first; i; i = i->next)
        if (runnable(i, queue) && i->owner->backlogged[queue])
            least = fmin(least, i->owner->tag[queue]);
    if (least < INFINITY)
        s->vtime[queue] = fmax(s->vtime[queue], least);
    for (size_t cursor = 0; (o = map_next(s->owners, &cursor, NULL, NULL));)
        o->backlogged[queue] = false;
    for (struct sched_item *i = s->first; i; i = i->next)
        if (runnable(i, queue)) {
            i->owner->tag[queue] = fmax(i->owner->tag[queue], s->vtime[queue]);
            i->owner->backlogged[queue] = true;
        }
}

/* An item that just joined starts level with the least served of its owner, or it would go first until it caught up. */
static void level_items(struct sched *s, int queue)
{
    for (struct sched_item *i = s->first; i; i = i->next) {
        double least = INFINITY;
        if (!runnable(i, queue) || (i->tag > 0 && i->decoding == (queue == DECODE)))
            continue;
        for (struct sched_item *j = s->first; j; j = j->next)
            if (j != i && j->owner == i->owner && runnable(j, queue) && j->tag > 0 && j->decoding == (queue == DECODE))
                least = fmin(least, j->tag);
        i->tag = least < INFINITY ? least : 0;
        i->decoding = queue == DECODE;
    }
}

static struct sched_item *pick(struct sched *s, int queue)
{
    struct sched_item *best = NULL;

    for (struct sched_item *i = s->first; i; i = i->next) {
        if (!runnable(i, queue) || i->planned >= i->pending)
            continue;
        if (!best || i->owner->tag[queue] < best->owner->tag[queue] || (i->owner == best->owner && i->tag < best->tag))
            best = i;
    }
    return best;
}

static void serve(struct sched_item *i, int queue, uint32_t tokens)
{
    i->planned += tokens;
    i->tag += tokens;
    i->owner->tag[queue] += tokens / i->owner->weight;
}

static uint32_t prefill_budget(const struct sched *s, uint32_t decodes, uint32_t room)
{
    double target = s->params.target_usec, tokens;

    if (decodes == 0)
        target *= SCHED_IDLE_TARGETS;
    if (s->prefill_usec <= 0)
        return MIN(room, (uint32_t)SCHED_FIRST_BUDGET);
    tokens = (target - decodes * s->decode_usec) / s->prefill_usec;
    if (tokens < SCHED_PREFILL_MIN)
        return MIN(room, (uint32_t)SCHED_PREFILL_MIN);
    return tokens > room ? room : (uint32_t)tokens;
}

static bool any_prompt(const struct sched *s)
{
    for (const struct sched_item *i = s->first; i; i = i->next)
        if (runnable(i, PROMPT))
            return true;
    return false;
}

uint32_t sched_plan(struct sched *s, struct sched_part *part, uint32_t max)
{
    uint32_t n = 0, room = s->params.max_step_tokens, for_decodes, decodes, budget;
    struct sched_item *i;

    for (int queue = 0; queue < QUEUES; queue++) {
        level_owners(s, queue);
        level_items(s, queue);
    }
    for (i = s->first; i; i = i->next)
        i->planned = 0;
    forget_owners(s);
    /* with prompts waiting, a full house of decodes leaves them an eighth of the step */
    for_decodes = MIN(max, any_prompt(s) ? room - (room + 7) / 8 : room);
    for (decodes = 0; decodes < for_decodes && (i = pick(s, DECODE)); decodes++) {
        serve(i, DECODE, 1);
        part[n++] = (struct sched_part){.item = i};
    }
    for (budget = prefill_budget(s, decodes, room - decodes); budget > 0 && (i = pick(s, PROMPT));) {
        uint32_t k = MIN(MIN(budget, (uint32_t)SCHED_QUANTUM), i->pending - i->planned);
        if (i->planned == 0) {
            if (n == max)
                break;
            part[n++] = (struct sched_part){.item = i};
        }
        serve(i, PROMPT, k);
        budget -= k;
    }
    for (uint32_t p = 0; p < n; p++) {
        part[p].tokens = part[p].item->planned;
        part[p].item->pending -= part[p].item->planned;
    }
    return n;
}

static void smooth(double *value, double measured)
{
    *value = *value > 0 ? *value + SMOOTH * (measured - *value) : measured;
}

void sched_measured(struct sched *s, uint32_t prefill_tokens, uint32_t decodes, uint64_t usec)
{
    double rest = (double)usec;

    if (decodes > 0 && prefill_tokens == 0)
        smooth(&s->decode_usec, rest / decodes);
    if (prefill_tokens > 0) {
        rest -= decodes * s->decode_usec;
        /* never below a tenth of the plain quotient: one lucky step must not open the budget wide */
        smooth(&s->prefill_usec, fmax(rest, 0.1 * (double)usec) / prefill_tokens);
    }
}

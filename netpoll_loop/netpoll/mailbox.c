/* mailbox.c: see np_mailbox.h. */
#include "netpoll_internal.h"

int np_mailbox_post(struct np_mailbox *m, struct np_desc *d, unsigned bits) {
    struct np_place *p = &d->place[m->which];
    int first = 0;
    np_spin_lock(&m->lock);
    p->bits |= bits;
    if (!p->listed) {
        p->listed = 1;
        p->next = NULL;
        if (m->tail) {
            m->tail->place[m->which].next = d;
        } else {
            m->head = d;
        }
        m->tail = d;
        if (!np_get(&m->any)) {
            first = 1;
            np_set_sc(&m->any, 1u);
        }
    }
    np_spin_unlock(&m->lock);
    return first;
}

void np_mailbox_clear(struct np_mailbox *m, struct np_desc *d) {
    np_spin_lock(&m->lock);
    d->place[m->which].bits = 0;
    np_spin_unlock(&m->lock);
}

struct np_desc *np_mailbox_take(struct np_mailbox *m, unsigned *bits) {
    struct np_desc *d = NULL;
    np_spin_lock(&m->lock);
    while (m->head) {
        d = m->head;
        struct np_place *p = &d->place[m->which];
        m->head = p->next;
        if (!m->head) {
            m->tail = NULL;
            np_set(&m->any, 0u);
        }
        p->listed = 0;
        *bits = p->bits;
        p->bits = 0;
        if (*bits) {
            break;
        }
        d = NULL;
    }
    np_spin_unlock(&m->lock);
    return d;
}

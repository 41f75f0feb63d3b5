/* server/picture.h
 *
 * Pieces of a picture: taken by the writer, saved by the painter.
 */
#ifndef PW_SERVER_PICTURE_H
#define PW_SERVER_PICTURE_H
#include "server/service_impl.h"

struct picture_work;

/*
 * The next piece of the picture that is being taken, or (`fresh`) the first of a new one. Within the state's lock for
 * writing, where all that was decided is durable. NULL: out of memory; the picture is lost, and the next one will be
 * whole. The last piece has more == false in its picture, whose revision is then the state's.
 */
struct picture_work *picture_piece(struct service *sv, bool fresh) PW_MUST_CHECK;
const struct picture *picture_of(const struct picture_work *w);
void picture_free(struct picture_work *w);

#endif

/* SPDX-License-Identifier: GPL-2.0-or-later */
/* screen.h - a terminal that is drawn again and again */
#ifndef SPLIT_MIGRATE_SCREEN_H
#define SPLIT_MIGRATE_SCREEN_H

#include <stdbool.h>

/** screen_colors() - is stdout a terminal that shall have colours (NO_COLOR is not set)? */
bool screen_colors(void);

/** screen_utf8() - can the locale write block characters? */
bool screen_utf8(void);

/** screen_size() - columns and rows of the terminal at stdout; 80 by 24 if it is none */
void screen_size(unsigned *columns, unsigned *rows);

/** screen_begin() - the alternate screen, and keys without Enter. screen_end() gives it back. */
void screen_begin(void);
void screen_end(void);

/** screen_draw() - show @text from the top left corner, cut to the terminal's size */
void screen_draw(const char *text);

/** screen_wait() - wait for @ms. Return: the key that ended it, 0 if none or if a signal did. */
int screen_wait(unsigned ms);

#endif

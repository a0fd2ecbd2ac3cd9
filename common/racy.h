/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * racy.h - mark accesses to memory that belongs to clients
 *
 * Two clients may read and write the same page at the same time, as on any
 * disk; what they then find is their business.  ThreadSanitizer is told to
 * look away for just these accesses, so that it can be believed about ours.
 */
#ifndef COMMON_RACY_H
#define COMMON_RACY_H

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RACY_TSAN 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define RACY_TSAN 1
#endif

#ifdef RACY_TSAN
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);

static inline void racy_begin(void)
{
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}

static inline void racy_end(void)
{
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
#else
static inline void racy_begin(void)
{
}

static inline void racy_end(void)
{
}
#endif

#endif

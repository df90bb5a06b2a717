/* What a compiler may call without a C library. */
#include <stddef.h>

void *memcpy(void *to, const void *from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);

void *memcpy(void *to, const void *from, size_t count) {
  for (char *a = to; count; count--) *a++ = *(const char *)from, from = (const char *)from + 1;
  return to;
}

void *memmove(void *to, const void *from, size_t count) {
  char *a = to;
  const char *b = from;
  if (a <= b) return memcpy(to, from, count);
  while (count--) a[count] = b[count];
  return to;
}

void *memset(void *to, int value, size_t count) {
  for (char *a = to; count; count--) *a++ = (char)value;
  return to;
}

/* The smallest program there is: what a cold start is measured with. */
int main(void)
{
    return 0;
}
